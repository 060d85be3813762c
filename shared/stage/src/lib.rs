//! The stage abstraction: a batch of records in, one outcome for each out. No IO.
//!
//! A stage never sees Kafka. It says what becomes of each record; the runner makes that true in one transaction.

mod concurrent;
mod delivery;
mod lane_state;
mod outcome;
mod state;

use std::future::Future;
use std::time::Duration;

pub use concurrent::ConcurrentStage;
pub use delivery::{Batch, Coordinates, Delivery, Headers};
pub use lane_state::{Change, LaneChange, LaneState, LaneView, MemoryLane, NoLane, ViewFuture};
pub use outcome::{Failure, Finally, Outcome, Output, failure_class};
pub use state::{MemoryState, State, StateValue, StateView};
use weir_contracts::Record;

/// One transformation of the pipeline.
pub trait Stage: Send + 'static {
    /// What it reads.
    type Input: Record;

    /// Whether it keeps state. Then a compacted topic `<stage>-state` must exist, with a partition for each lane.
    const STATEFUL: bool = false;

    /// One outcome for each delivery, in order. Must give the same outcomes again when it is called again with the
    /// same batch: the runner does so after a crash, an abort or an unavailable dependency.
    ///
    /// # Errors
    /// [`StageError::Unavailable`] when the records are fine but something the stage needs is not there;
    /// [`StageError::Fatal`] when the stage can't go on at all.
    fn process(
        &mut self,
        batch: Batch<'_, Self::Input>,
    ) -> impl Future<Output = Result<Vec<Outcome>, StageError>> + Send;

    /// What is said of a record that becomes a dead letter, to those who wait for it; committed with the dead letter.
    /// Asked for every record that could be decoded, whoever rejects it and why: the stage itself, or the runner because
    /// the stage panicked, an output was too large or the last try failed. Asked after [`Stage::process`], and again when
    /// the batch is processed again. Says nothing by default.
    ///
    /// # Errors
    /// As [`Stage::process`].
    fn last_words(
        &mut self,
        delivery: &Delivery<Self::Input>,
        failure: &Failure,
    ) -> impl Future<Output = Result<Vec<Output>, StageError>> + Send {
        let _ = (delivery, failure);
        async { Ok(Vec::new()) }
    }
}

/// Why a stage could not say what becomes of a batch.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The records are fine; a dependency is not there. Their lanes pause and the batch is tried again.
    #[error("{dependency} is unavailable: {reason}")]
    Unavailable {
        /// What is missing, for example `qdrant`; a label of metrics, so a constant.
        dependency: &'static str,
        /// What happened.
        reason: String,
        /// The earliest time to try again, if the dependency said so.
        retry_after: Option<Duration>,
    },
    /// The stage can't go on; the service exits with an error.
    #[error("{0}")]
    Fatal(String),
}

impl StageError {
    /// A dependency that is not there, without a hint when it will be.
    pub fn unavailable(dependency: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Unavailable { dependency, reason: reason.to_string(), retry_after: None }
    }
}
