//! Settings of the service.

use serde::{Deserialize, Serialize};
use weir_contracts::MetricDef;
use weir_models::ModelConfig;
use weir_runner::{KafkaConfig, RegistryConfig, RunnerConfig};
use weir_service::{Common, HttpConfig, Invalid, ServiceConfig, TelemetryConfig};

use crate::metric;

/// All settings of the service.
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
    /// The embedding model, whose tokens are counted.
    pub model: ModelConfig,
    /// Chunks.
    pub chunk: ChunkConfig,
}

/// How long chunks are. Section `[chunk]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChunkConfig {
    /// Tokens of a chunk, at most, overlap included and special tokens not; 0: as many as the model takes.
    pub max_tokens: usize,
    /// Tokens, at most, that a chunk repeats of the one before, where a text had to be cut.
    pub overlap_tokens: usize,
}

impl Default for ChunkConfig {
    fn default() -> Self {
        Self { max_tokens: 0, overlap_tokens: 40 }
    }
}

/// The shortest chunks that make sense.
pub(crate) const MIN_TOKENS: usize = 32;

impl ServiceConfig for Config {
    const NAME: &'static str = "chunk";
    const ABOUT: &'static str = "Splits documents into chunks that fit the embedding model.";
    const PORT: u16 = 9102;
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
        let ChunkConfig { max_tokens, overlap_tokens } = self.chunk;
        if max_tokens != 0 && max_tokens < MIN_TOKENS {
            return Err(Invalid::new("chunk.max_tokens", format!("must be 0 or at least {MIN_TOKENS}")));
        }
        if max_tokens != 0 && overlap_tokens * 2 > max_tokens {
            return Err(Invalid::new("chunk.overlap_tokens", "must be at most half of chunk.max_tokens"));
        }
        self.model.check().map_err(|(key, reason)| Invalid::new(format!("model.{key}"), reason))
    }
}
