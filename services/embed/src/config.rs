//! Settings.

use serde::{Deserialize, Serialize};
use weir_contracts::MetricDef;
use weir_models::ModelConfig;
use weir_runner::{KafkaConfig, RegistryConfig, RunnerConfig};
use weir_service::{Common, HttpConfig, Invalid, ServiceConfig, TelemetryConfig};

/// Bytes of records in a batch unless configured otherwise. They become about 15,000 tokens: enough to fill every
/// thread several times over, and a few seconds of work on two cores, so that a lane can be handed over in time.
const MAX_BATCH_BYTES: usize = 64 << 10;

/// Settings of the service.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// How to reach the schema registry.
    pub registry: RegistryConfig,
    /// How the stage is run.
    pub runner: RunnerConfig,
    /// The health server.
    pub http: HttpConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// The embedding model.
    pub model: ModelConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kafka: KafkaConfig::default(),
            registry: RegistryConfig::default(),
            runner: RunnerConfig { max_batch_bytes: MAX_BATCH_BYTES, ..RunnerConfig::default() },
            http: HttpConfig::default(),
            telemetry: TelemetryConfig::default(),
            model: ModelConfig::default(),
        }
    }
}

impl ServiceConfig for Config {
    const NAME: &'static str = "embed";
    const ABOUT: &'static str = "Turns chunks into vectors.";
    const PORT: u16 = 9103;
    const METRICS: &'static [MetricDef] = weir_models::metric::METRICS;

    fn common(&self) -> Common<'_> {
        Common {
            kafka: &self.kafka,
            registry: &self.registry,
            runner: &self.runner,
            http: &self.http,
            telemetry: &self.telemetry,
        }
    }

    fn validate(&self) -> Result<(), Invalid> {
        self.model.check().map_err(|(key, reason)| Invalid::new(format!("model.{key}"), reason))
    }
}
