//! Settings.

use std::path::PathBuf;

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
    /// The service's own.
    pub embed: EmbedConfig,
}

/// Largest cache that makes sense, MiB: beyond, a miss looks into too many tables.
const MAX_CACHE_MIB: u64 = 32 << 10;

/// The service's own settings. Section `[embed]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmbedConfig {
    /// Room on disk for vectors of chunks that were embedded before, MiB; 0: every chunk is embedded.
    pub cache_mib: u64,
    /// Folder for these vectors, a cache that may be deleted while the service is down. Instances may share it: each
    /// has a part of it for itself, of `cache_mib`. By default `embed-cache` below `runner.state_dir`.
    pub cache_dir: Option<PathBuf>,
}

impl Default for EmbedConfig {
    fn default() -> Self {
        Self { cache_mib: 1024, cache_dir: None }
    }
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
            embed: EmbedConfig::default(),
        }
    }
}

impl ServiceConfig for Config {
    const NAME: &'static str = "embed";
    const ABOUT: &'static str = "Turns chunks into vectors.";
    const PORT: u16 = 9103;
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

    fn validate(&self) -> Result<(), Invalid> {
        if self.embed.cache_mib > MAX_CACHE_MIB {
            return Err(Invalid::new("embed.cache_mib", format!("must be at most {MAX_CACHE_MIB}")));
        }
        self.model.check().map_err(|(key, reason)| Invalid::new(format!("model.{key}"), reason))
    }
}
