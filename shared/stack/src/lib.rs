//! Runs Kafka, the schema registry and the embedded Qdrant server as supervised child processes.
//!
//! - [`Stack`]: the services are children of the calling process and end with it. For tests, and for the supervisor.
//! - [`Blueprint`]: what has to run, for who runs it in another way.
//! - [`up`], [`down`], [`supervise`], [`StackState`]: a stack in the background, as `weir stack` runs it.
//! - [`topics`] and [`schemas`]: makes a cluster and a registry, these or others, match what the repository declares.

mod artifacts;
mod blueprint;
mod classes;
mod cluster;
mod config;
mod error;
mod folder;
mod kafka;
mod machine;
mod metadata_log;
mod ports;
mod probe;
mod process;
mod qdrant;
mod registry;
pub mod schemas;
mod stack;
mod state;
mod supervise;
mod tls;
pub mod topics;
mod unit;

pub use blueprint::{Blueprint, Planned};
pub use cluster::{Cluster, ClusterError, ClusterState, Complaints, CreateTopic, Setting, TopicState, client_config};
pub use config::{KAFKA_PORT, Ports, QDRANT_PORT, REGISTRY_PORT, SaslSsl, StackConfig, User};
pub use error::StackError;
// The command line supervises the services with it.
pub use folder::logs;
pub use kafka::properties_file;
pub use ports::free_ports;
pub use probe::Probe;
pub use process::{ProcessId, Supervised};
pub use stack::Stack;
pub use state::{Endpoints, Phase, ServiceState, StackState, running};
pub use supervise::{Down, Up, down, supervise, up};
