//! Settings.

use serde::{Deserialize, Serialize};
use weir_contracts::MetricDef;
use weir_runner::{KafkaConfig, RegistryConfig, RunnerConfig};
use weir_service::{Common, HttpConfig, Invalid, ServiceConfig, TelemetryConfig};
use weir_vectors::QdrantConfig;

use crate::metric;

/// Settings of the service.
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
    /// How to reach Qdrant.
    pub qdrant: QdrantConfig,
    /// The service's own.
    pub index: IndexConfig,
}

/// The service's own settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IndexConfig {
    /// Seconds between two sweeps, which remove chunks that were written too late to be seen; 0: no sweeps.
    pub sweep_interval_s: u64,
    /// Chunks a sweep looks at in one request.
    pub sweep_page: u32,
    /// Milliseconds a sweep waits after each request, so that it does not get in the way.
    pub sweep_pause_ms: u64,
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self { sweep_interval_s: 900, sweep_page: 500, sweep_pause_ms: 50 }
    }
}

impl ServiceConfig for Config {
    const NAME: &'static str = "index";
    const ABOUT: &'static str = "Writes vectors to Qdrant and moves each document's head.";
    const PORT: u16 = 9104;
    const METRICS: &'static [MetricDef] = metric::METRICS;

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
        if self.index.sweep_page == 0 {
            return Err(Invalid::new("index.sweep_page", "must be at least 1"));
        }
        self.qdrant.check().map_err(|(key, reason)| Invalid::new(format!("qdrant.{key}"), reason))
    }
}
