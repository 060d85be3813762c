//! Settings.

use serde::{Deserialize, Serialize};
use weir_contracts::MetricDef;
use weir_runner::{KafkaConfig, RegistryConfig, RunnerConfig};
use weir_service::{Common, HttpConfig, ServiceConfig, TelemetryConfig};

/// Settings of the service: the common ones only.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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
}

impl ServiceConfig for Config {
    const NAME: &'static str = "eval";
    const ABOUT: &'static str = "Scores answers: citation validity and groundedness.";
    const PORT: u16 = 9106;
    const METRICS: &'static [MetricDef] = crate::metric::METRICS;

    fn common(&self) -> Common<'_> {
        Common {
            kafka: &self.kafka,
            registry: &self.registry,
            runner: &self.runner,
            http: &self.http,
            telemetry: &self.telemetry,
        }
    }
}
