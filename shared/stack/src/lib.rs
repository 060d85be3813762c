//! Runs Kafka, the schema registry and the embedded Qdrant server as supervised child processes.
//!
//! [`Stack`] is for tests and for the supervisor: the services are children of the calling process and end with it.

mod artifacts;
mod config;
mod error;
mod folder;
mod kafka;
mod machine;
mod ports;
mod probe;
mod process;
mod qdrant;
mod registry;
mod stack;
mod state;
mod tls;
mod unit;

pub use config::{KAFKA_PORT, Ports, QDRANT_PORT, REGISTRY_PORT, SaslSsl, StackConfig, User};
pub use error::StackError;
// The command line supervises the services with it.
pub use process::{ProcessId, Supervised};
pub use stack::Stack;
pub use state::{Endpoints, Phase, ServiceState, StackState, running};
