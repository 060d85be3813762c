//! Settings of Kafka, the schema registry and the runner.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weir_contracts::{DEFAULT_LANES, DEFAULT_PREFIX, TopicNames};

/// How to reach Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaConfig {
    /// Bootstrap servers, `host:port,host:port`.
    pub brokers: String,
    /// Prefix of every topic, consumer group and transactional id.
    pub prefix: String,
    /// Partitions of the topics behind the routers.
    pub lanes: i32,
    /// Any further librdkafka property, for example `security.protocol`, `sasl.mechanism`, `sasl.username`.
    /// Values of properties that name a password or a secret are never printed.
    pub properties: BTreeMap<String, String>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".into(),
            prefix: DEFAULT_PREFIX.into(),
            lanes: DEFAULT_LANES,
            properties: BTreeMap::new(),
        }
    }
}

impl KafkaConfig {
    /// Names of the topics on this cluster.
    #[must_use]
    pub fn topics(&self) -> TopicNames {
        TopicNames::new(self.prefix.clone())
    }
}

/// How to reach the schema registry (any that speaks Confluent's API).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Base URL of the Confluent API; Apicurio's ends in `/apis/ccompat/v7`.
    pub url: String,
    /// User name, when the registry asks for one.
    pub username: Option<String>,
    /// Password of that user.
    #[serde(skip_serializing)]
    pub password: Option<String>,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self { url: "http://127.0.0.1:8081/apis/ccompat/v7".into(), username: None, password: None }
    }
}

/// How a stage is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunnerConfig {
    /// Name of this instance, stable over restarts and unique among the instances of a service: it makes the
    /// transactional id, so that a restarted instance fences its own zombie. The host's name when empty.
    pub instance: String,
    /// Records in a batch, at most.
    pub max_batch_records: usize,
    /// Bytes of values in a batch, at most (one record may exceed it).
    pub max_batch_bytes: usize,
    /// Milliseconds to wait for more records before a batch that is not full is processed.
    pub linger_ms: u64,
    /// Milliseconds between the beginnings of two transactions, at least. 0: as soon as a batch is done. Records that run
    /// side by side are committed at once when the last of them is done.
    pub commit_interval_ms: u64,
    /// Bytes of values that wait in memory for each lane, at most (one record may exceed it).
    pub lane_buffer_bytes: usize,
    /// Largest record Kafka accepts, bytes (`max.message.bytes` of the output topics).
    pub max_record_bytes: usize,
    /// Milliseconds after which the broker aborts a transaction that was left open.
    pub transaction_timeout_ms: u64,
    /// Milliseconds without a heartbeat after which the group gives this instance's lanes to others.
    pub session_timeout_ms: u64,
    /// Whether the group knows this instance by its name (static membership): started again within the session timeout it
    /// has its lanes back at once, instead of after that timeout when it was killed. In return, lanes of an instance that
    /// is stopped for good stay unowned for a session timeout.
    pub static_membership: bool,
    /// Milliseconds that running work gets to finish on shutdown or when its lane is revoked.
    pub grace_ms: u64,
    /// First pause when a dependency is unavailable, milliseconds; doubles each time, with full jitter.
    pub backoff_initial_ms: u64,
    /// Longest pause when a dependency is unavailable, milliseconds.
    pub backoff_max_ms: u64,
    /// Folder for the state of stages that keep some, a cache: what is lost in it is restored from Kafka.
    pub state_dir: PathBuf,
    /// Times a record is tried again later before it becomes a dead letter.
    pub retry_attempts: u32,
    /// The same for classes of failure of their own, by name.
    pub retry_attempts_by_class: BTreeMap<String, u32>,
    /// Delay tier of the first retry: 0 (1 s), 1 (2 s), 2 (4 s) or 3 (8 s); each further one takes the next.
    pub retry_first_tier: usize,
    /// Spreads delays over the half tier before and after, so that what failed together does not return together.
    pub retry_jitter: bool,
    /// Share of a lane's work that records returning from retry and replay get while fresh ones wait; 0 to 1.
    pub retry_share: f64,
    /// Records rejected one after another in a lane that stop the lane.
    pub flood_consecutive: u32,
    /// Share of the last `flood_window` records of a lane that, rejected, stops the lane; 0 to 1.
    pub flood_ratio: f64,
    /// Records over which `flood_ratio` is taken.
    pub flood_window: u32,
}

impl Default for RunnerConfig {
    fn default() -> Self {
        Self {
            instance: String::new(),
            max_batch_records: 2_000,
            max_batch_bytes: 8 << 20,
            linger_ms: 0,
            commit_interval_ms: 0,
            lane_buffer_bytes: 4 << 20,
            max_record_bytes: 1 << 20,
            transaction_timeout_ms: 15_000,
            session_timeout_ms: 15_000,
            static_membership: false,
            grace_ms: 10_000,
            backoff_initial_ms: 200,
            backoff_max_ms: 15_000,
            state_dir: "weir-state".into(),
            retry_attempts: 4,
            retry_attempts_by_class: BTreeMap::new(),
            retry_first_tier: 0,
            retry_jitter: true,
            retry_share: 0.2,
            flood_consecutive: 100,
            flood_ratio: 0.5,
            flood_window: 1_000,
        }
    }
}
