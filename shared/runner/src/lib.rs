//! Runs a stage on Kafka, exactly once: transactions, rebalances, dead letters, lag, backpressure.

mod client;
mod config;
mod lag;
pub mod metric;
mod publisher;
mod reader;
mod registry;
mod run;
mod status;
mod trace_context;

pub use config::{KafkaConfig, RegistryConfig, RunnerConfig};
pub use lag::{LaneLag, LagError, group_lag};
pub use publisher::{PublishError, Publisher};
pub use reader::{ReadError, Start, TopicReader};
pub use registry::{Registry, RegistryError};
pub use run::{Runner, RunnerError};
pub use status::{PauseReason, StageStatus};
