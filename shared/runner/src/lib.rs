//! Runs a stage on Kafka, exactly once: transactions, rebalances, dead letters, lag, backpressure.

mod assignment;
mod backoff;
mod client;
mod clock;
mod commit;
mod concurrent;
mod config;
mod dead_letter;
mod dead_letters;
mod desk;
mod engine;
mod extent;
mod failpoint;
mod flood;
mod insist;
mod jobs;
mod lag;
mod lane;
mod lane_stops;
mod mechanism;
pub mod metric;
mod ownership;
mod process;
mod progress;
mod publisher;
mod reader;
mod registry;
mod retry;
mod run;
mod sender;
mod state;
mod status;
mod table;
mod trace_context;
mod transaction;

pub use concurrent::{Concurrency, Order};
pub use config::{KafkaConfig, RegistryConfig, RunnerConfig};
pub use dead_letters::{
    Action, DeadLetter, DeadLetterError, DeadLetters, Decision, Filter, NotPortable, Pace, Parked, Plan, Portable,
    PortableBytes, PortableHeader, Report, Step,
};
pub use extent::{Extent, extent};
pub use jobs::{
    JobEnding, JobFailure, JobFollower, JobKind, JobStep, JobWork, JobWorker, Jobs, JobsError, NewJob, Submitted,
    WorkerEvent,
};
pub use lag::{LagError, LaneLag, group_lag};
pub use mechanism::{Mechanism, is_switched_off};
pub use publisher::{PublishError, Publisher};
pub use reader::{Entry, ReadError, Start, TopicReader};
pub use registry::{Registry, RegistryError};
pub use run::{Runner, RunnerError};
pub use state::read_state;
pub use status::{PauseReason, StageStatus};
pub use trace_context::traces_are_exported;
