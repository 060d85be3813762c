//! A service that shouts.

use tokio_util::sync::CancellationToken;
use weir_contracts::{Raw, Topic};
use weir_runner::{KafkaConfig, Registry, RegistryConfig, Runner, RunnerConfig};
use weir_stage::{Batch, Failure, Outcome, Output, Stage, StageError};

/// Copies texts from topic `texts` to topic `shouts`, louder.
struct Shout;

impl Stage for Shout {
    type Input = Raw;

    async fn process(&mut self, batch: Batch<'_, Raw>) -> Result<Vec<Outcome>, StageError> {
        let shout = |bytes: &[u8]| match std::str::from_utf8(bytes) {
            Ok(text) => Outcome::emit(Output::new(Topic::custom("shouts"), "key", Raw(text.to_uppercase().into()))),
            Err(error) => Outcome::reject(Failure::new("not-text", error)),
        };
        Ok(batch.iter().map(|delivery| shout(&delivery.record().0)).collect())
    }
}

/// Runs until `stop` is cancelled.
pub async fn run(kafka: KafkaConfig, stop: CancellationToken) -> Result<(), Box<dyn std::error::Error>> {
    let registry = Registry::new(&RegistryConfig::default(), &kafka.prefix)?;
    let config = RunnerConfig { instance: "shout-0".into(), ..RunnerConfig::default() };
    Runner::new("shout", kafka, registry, config).run(Topic::custom("texts"), Shout, stop).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "there is a TLS provider already")?;
    let stop = CancellationToken::new();
    let interrupted = stop.clone();
    tokio::spawn(async move { tokio::signal::ctrl_c().await.map(|()| interrupted.cancel()) });
    run(KafkaConfig { prefix: "demo.".into(), ..KafkaConfig::default() }, stop).await
}
