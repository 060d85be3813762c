//! A worker for jobs to hurt, as a process of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use weir_runner::{JobKind, JobWorker, Jobs, KafkaConfig, Registry, RegistryConfig};
use weir_tests::files_job::Files;

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    prefix: String,
    #[arg(long)]
    registry: String,
    #[arg(long)]
    name: String,
    /// Where it notes the files that it reads.
    #[arg(long)]
    log: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Without TLS nothing needs a provider; the HTTP client wants to know one all the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt().with_ansi(false).init();
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            tracing::error!(reason);
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), String> {
    let kafka = KafkaConfig { brokers: arguments.brokers, prefix: arguments.prefix, ..KafkaConfig::default() };
    let registry = RegistryConfig { url: arguments.registry, ..RegistryConfig::default() };
    let registry = Registry::new(&registry, &kafka.prefix).map_err(|error| error.to_string())?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        terminate.recv().await;
        stop.cancel();
    });
    let kind: Arc<dyn JobKind> = Arc::new(Files { log: arguments.log });
    let worker = JobWorker::new(Jobs::new(&kafka, registry), vec![kind], arguments.name, 2);
    worker.run(shutdown).await.map_err(|error| error.to_string())
}
