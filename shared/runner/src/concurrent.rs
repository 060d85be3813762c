//! The two modes of a stage: batches, one after another; or records of a lane side by side, each in a processor of its own.

use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;

use weir_contracts::Record;
use weir_stage::{
    Batch, Change, ConcurrentStage, Delivery, Failure, LaneState, NoLane, Outcome, Output, Stage, StageError,
};

use crate::state::{BatchState, LaneHandle};

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

/// What a processor does with records: a stage, in one of the two modes.
pub(crate) trait Work: Send + 'static {
    /// What it reads.
    type Input: Record;

    const STATEFUL: bool;

    /// One outcome for each delivery, in order.
    fn process(
        &mut self,
        deliveries: &[Delivery<Self::Input>],
        state: &Seen<'_>,
    ) -> impl Future<Output = Result<Vec<Outcome>, StageError>> + Send;

    /// `last`: the last change that the record makes, where records run side by side.
    fn last_words(
        &mut self,
        delivery: &Delivery<Self::Input>,
        failure: &Failure,
        last: &mut Change<'_>,
    ) -> impl Future<Output = Result<Vec<Output>, StageError>> + Send;
}

/// The state that a processor shows to a stage.
pub(crate) enum Seen<'a> {
    /// The stage keeps none.
    Nothing,
    /// As a batch sees it.
    Batch(&'a BatchState),
    /// As a record sees it beside which others run.
    Lane(&'a LaneHandle),
}

/// A stage that gets batches.
pub(crate) struct Together<S>(pub(crate) S);

impl<S: Stage> Work for Together<S> {
    type Input = S::Input;

    const STATEFUL: bool = S::STATEFUL;

    async fn process(
        &mut self,
        deliveries: &[Delivery<Self::Input>],
        state: &Seen<'_>,
    ) -> Result<Vec<Outcome>, StageError> {
        let batch = match state {
            Seen::Batch(state) => Batch::with_state(deliveries, *state),
            Seen::Nothing | Seen::Lane(_) => Batch::new(deliveries),
        };
        self.0.process(batch).await
    }

    async fn last_words(
        &mut self,
        delivery: &Delivery<Self::Input>,
        failure: &Failure,
        _: &mut Change<'_>,
    ) -> Result<Vec<Output>, StageError> {
        self.0.last_words(delivery, failure).await
    }
}

/// A stage that gets single records.
pub(crate) struct Alone<S>(pub(crate) Arc<S>);

impl<S: ConcurrentStage> Work for Alone<S> {
    type Input = S::Input;

    const STATEFUL: bool = S::STATEFUL;

    async fn process(
        &mut self,
        deliveries: &[Delivery<Self::Input>],
        state: &Seen<'_>,
    ) -> Result<Vec<Outcome>, StageError> {
        let mut outcomes = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            outcomes.push(self.0.process(delivery, state.of_lane(delivery)).await?);
        }
        Ok(outcomes)
    }

    async fn last_words(
        &mut self,
        delivery: &Delivery<Self::Input>,
        failure: &Failure,
        last: &mut Change<'_>,
    ) -> Result<Vec<Output>, StageError> {
        self.0.last_words(delivery, failure, last)
    }
}

impl Seen<'_> {
    fn of_lane<R>(&self, delivery: &Delivery<R>) -> LaneState<'_> {
        match self {
            Self::Lane(lane) => LaneState::new(*lane, delivery.timestamp),
            Self::Nothing | Self::Batch(_) => LaneState::new(&NoLane, delivery.timestamp),
        }
    }
}
