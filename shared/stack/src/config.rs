//! What to run, and where.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Port of the first broker unless chosen otherwise.
pub const KAFKA_PORT: u16 = 9092;
/// Port of the schema registry unless chosen otherwise.
pub const REGISTRY_PORT: u16 = 8081;
/// Port of Qdrant's gRPC unless chosen otherwise.
pub const QDRANT_PORT: u16 = 6334;

/// What a stack consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackConfig {
    /// Data folder; everything of the stack lies in `stack` in it.
    pub data: PathBuf,
    /// Run Kafka. The registry keeps its data there, so it needs it.
    pub kafka: bool,
    /// Run the schema registry.
    pub registry: bool,
    /// Run the embedded Qdrant server.
    pub qdrant: bool,
    /// Brokers, 1 to 9. From three on: replication 3, min.insync.replicas 2.
    pub brokers: u16,
    /// Where they listen. Always on 127.0.0.1.
    pub ports: Ports,
    /// Asks clients of Kafka for TLS and a password; none: plain text.
    pub security: Option<SaslSsl>,
    /// The `qdrant-embedded` program; found beside the running program when none.
    pub qdrant_binary: Option<PathBuf>,
    /// Further properties of the brokers; they win over the stack's own.
    pub broker_properties: BTreeMap<String, String>,
    /// Heap of each broker, MiB.
    pub broker_heap_mib: u32,
}

/// How ports are chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ports {
    /// These. Broker n (from 0) takes `kafka + 2n`, its controller the port after that.
    Fixed {
        /// First broker.
        kafka: u16,
        /// Schema registry.
        registry: u16,
        /// Qdrant's gRPC.
        qdrant: u16,
    },
    /// Any that are free; they stay the same until the stack is stopped.
    Free,
}

impl Default for Ports {
    fn default() -> Self {
        Self::Fixed { kafka: KAFKA_PORT, registry: REGISTRY_PORT, qdrant: QDRANT_PORT }
    }
}

/// SASL_SSL with PLAIN for Kafka's clients, with a certificate made on the spot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaslSsl {
    /// Who may log in. Names and passwords: letters, digits, `-` and `_`.
    pub users: Vec<User>,
    /// Whether rights are checked: then users that are not super users have none until they are given some.
    pub authorize: bool,
}

/// Somebody who may log in to Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Name.
    pub name: String,
    /// Password.
    pub password: String,
    /// May do everything.
    pub superuser: bool,
}

impl StackConfig {
    /// The stack of a developer's machine: everything, one broker, the usual ports.
    #[must_use]
    pub fn local(data: impl AsRef<Path>) -> Self {
        Self {
            data: data.as_ref().to_path_buf(),
            kafka: true,
            registry: true,
            qdrant: true,
            brokers: 1,
            ports: Ports::default(),
            security: None,
            qdrant_binary: None,
            broker_properties: BTreeMap::new(),
            broker_heap_mib: 512,
        }
    }

    /// The stack of a test: Kafka alone on free ports, with short waits. Switch the others on as needed.
    #[must_use]
    pub fn for_test(data: impl AsRef<Path>) -> Self {
        let quick = [
            // Tests of zombies and crashes wait for these.
            ("group.min.session.timeout.ms", "1000"),
            ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "500"),
            ("log.initial.task.delay.ms", "500"),
        ];
        Self {
            registry: false,
            qdrant: false,
            ports: Ports::Free,
            broker_properties: quick.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ..Self::local(data)
        }
    }

    /// Replicas of each topic.
    #[must_use]
    pub fn replication(&self) -> u16 {
        self.brokers.min(3)
    }

    /// Replicas that must have a record before it counts as written.
    #[must_use]
    pub fn min_insync_replicas(&self) -> u16 {
        if self.brokers >= 3 { 2 } else { 1 }
    }
}
