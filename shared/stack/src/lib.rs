//! Runs Kafka, the schema registry and the embedded Qdrant server as supervised child processes.

mod process;
mod state;

pub use process::{ProcessId, Supervised};
pub use state::{Endpoints, Phase, ServiceState, StackState, running};
