//! The concurrent mode: records of a lane run side by side, each in a processor of its own.

use std::num::NonZeroUsize;
use std::sync::Arc;

use weir_stage::{Batch, ConcurrentStage, Delivery, Failure, Outcome, Output, Stage, StageError};

/// Which records may run side by side, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concurrency {
    /// Records at once, over all lanes of an instance.
    pub records: NonZeroUsize,
    /// Which of them.
    pub order: Order,
}

/// Which records of a lane may run side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Any.
    Free,
    /// Those with different keys; one key's records run one after another, in order, and so do their outputs. Records
    /// without a key run beside any.
    ByKey,
}

/// How the loop hands records out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// One batch at a time.
    Batches,
    /// Each record by itself.
    Each(Concurrency),
}

/// A stage whose batches are single records.
pub(crate) struct Alone<S>(pub(crate) Arc<S>);

impl<S: ConcurrentStage> Stage for Alone<S> {
    type Input = S::Input;

    async fn process(&mut self, batch: Batch<'_, Self::Input>) -> Result<Vec<Outcome>, StageError> {
        let mut outcomes = Vec::with_capacity(batch.len());
        for delivery in batch.iter() {
            outcomes.push(self.0.process(delivery).await?);
        }
        Ok(outcomes)
    }

    async fn last_words(
        &mut self,
        delivery: &Delivery<Self::Input>,
        failure: &Failure,
    ) -> Result<Vec<Output>, StageError> {
        self.0.last_words(delivery, failure).await
    }
}
