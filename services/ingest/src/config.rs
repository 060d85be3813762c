//! Settings of the service.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};
use weir_contracts::MetricDef;
use weir_runner::{KafkaConfig, RegistryConfig, RunnerConfig};
use weir_service::{Common, HttpConfig, Invalid, ServiceConfig, TelemetryConfig};

use crate::formats::Limits;
use crate::{fetch, metric};

/// All settings of the service.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// How to reach the schema registry.
    pub registry: RegistryConfig,
    /// How the stages are run.
    pub runner: RunnerConfig,
    /// The health server.
    pub http: HttpConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// Extraction.
    pub ingest: IngestConfig,
}

/// What documents may be and where they may lie. Section `[ingest]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngestConfig {
    /// Raw bytes of a document, at most.
    pub max_bytes: usize,
    /// Bytes that the compressed parts of a document may unfold to.
    pub max_expanded_bytes: usize,
    /// Bytes that a compressed part may unfold to, for each of its compressed bytes.
    pub max_expansion_ratio: usize,
    /// Elements inside one another, at most.
    pub max_nesting: usize,
    /// Pages of a document, at most.
    pub max_pages: usize,
    /// Seconds of processor time that reading a document may take.
    pub max_seconds: u64,
    /// Processes that read documents; 0: as many as there are processors, at most 4.
    pub workers: usize,
    /// Memory of such a process, MiB.
    pub worker_memory_mb: u64,
    /// URLs under which documents that do not fit into a record may lie, for example `file:///data/inbox/` or
    /// `s3://bucket/prefix/`. None by default: a request must not make the service read what it likes.
    pub allow_urls: Vec<String>,
    /// Hours for which an idempotency key is remembered, counted from the request that used it first.
    pub idempotency_window_hours: u32,
    /// Documents that are fetched at the same time, at most; each may be in memory whole.
    pub fetches: usize,
    /// Options for S3, by the names that object_store gives them, for example `aws_endpoint`, `aws_region`,
    /// `aws_access_key_id`, `aws_secret_access_key`, `aws_allow_http`. The environment's `AWS_*` count as well.
    pub s3: BTreeMap<String, String>,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            max_bytes: 32 << 20,
            max_expanded_bytes: 256 << 20,
            max_expansion_ratio: 200,
            max_nesting: 500,
            max_pages: 2_000,
            max_seconds: 20,
            workers: 0,
            worker_memory_mb: 1_024,
            allow_urls: Vec::new(),
            idempotency_window_hours: 24,
            fetches: 4,
            s3: BTreeMap::new(),
        }
    }
}

impl IngestConfig {
    /// What a document may cost.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            max_bytes: self.max_bytes,
            max_expanded_bytes: self.max_expanded_bytes,
            max_expansion_ratio: self.max_expansion_ratio,
            max_nesting: self.max_nesting,
            max_pages: self.max_pages,
            max_seconds: self.max_seconds,
            max_memory: self.worker_memory_mb << 20,
        }
    }

    /// Processes that read documents.
    #[must_use]
    pub fn workers(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(4),
            workers => workers,
        }
    }
}

impl ServiceConfig for Config {
    const NAME: &'static str = "ingest";
    const ABOUT: &'static str = "Routes document requests into lanes and extracts their text.";
    const PORT: u16 = 9101;
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
        let ingest = &self.ingest;
        let counts = [
            ("ingest.max_bytes", ingest.max_bytes),
            ("ingest.max_expanded_bytes", ingest.max_expanded_bytes),
            ("ingest.max_expansion_ratio", ingest.max_expansion_ratio),
            ("ingest.max_pages", ingest.max_pages),
            ("ingest.fetches", ingest.fetches),
        ];
        for (key, value) in counts {
            if value == 0 {
                return Err(Invalid::new(key, "must be at least 1"));
            }
        }
        if !(16..=1_000).contains(&ingest.max_nesting) {
            return Err(Invalid::new("ingest.max_nesting", "must lie between 16 and 1000"));
        }
        if !(1..=3_600).contains(&ingest.max_seconds) {
            return Err(Invalid::new("ingest.max_seconds", "must lie between 1 and 3600"));
        }
        if !(256..=65_536).contains(&ingest.worker_memory_mb) {
            return Err(Invalid::new("ingest.worker_memory_mb", "must lie between 256 and 65536"));
        }
        if !(1..=8_760).contains(&ingest.idempotency_window_hours) {
            return Err(Invalid::new("ingest.idempotency_window_hours", "must lie between 1 and 8760, a year"));
        }
        for url in &ingest.allow_urls {
            fetch::check_prefix(url).map_err(|reason| Invalid::new("ingest.allow_urls", reason))?;
        }
        Ok(())
    }
}
