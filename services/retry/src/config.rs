//! Settings.

use serde::{Deserialize, Serialize};
use weir_contracts::MetricDef;
use weir_runner::{KafkaConfig, RegistryConfig, RunnerConfig};
use weir_service::{Common, HttpConfig, ServiceConfig, TelemetryConfig};

/// Settings of the service: the common ones only.
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
}

impl Default for Config {
    fn default() -> Self {
        let runner = RunnerConfig::default();
        // A record at the limit has a history too by the time it is here.
        let runner = RunnerConfig { max_record_bytes: 2 * runner.max_record_bytes, ..runner };
        Self {
            kafka: KafkaConfig::default(),
            registry: RegistryConfig::default(),
            runner,
            http: HttpConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl ServiceConfig for Config {
    const NAME: &'static str = "retry";
    const ABOUT: &'static str = "Returns records that failed for now to their stages, after 1, 2, 4 and 8 seconds.";
    const PORT: u16 = 9107;
    const METRICS: &'static [MetricDef] = &[];

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
