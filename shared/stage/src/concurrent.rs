//! Stages whose records do not wait for one another.

use std::future::Future;

use weir_contracts::Record;

use crate::{Change, Delivery, Failure, LaneState, Outcome, Output, StageError};

/// A transformation that makes slow, independent calls, such as those of language models: many records of a lane are worked
/// on at once and complete in any order.
pub trait ConcurrentStage: Send + Sync + 'static {
    /// What it reads.
    type Input: Record;

    /// Whether it keeps state. Then a compacted topic `<stage>-state` must exist, with a partition for each lane.
    const STATEFUL: bool = false;

    /// What becomes of a record. Asked again after a crash or an unavailable dependency, and then sees in its state what
    /// was committed before; dropped when the record's lane goes to another instance.
    ///
    /// # Errors
    /// [`StageError::Unavailable`] when the record is fine but something it needs is not there: it alone is tried again.
    /// [`StageError::Fatal`] when the stage can't go on at all.
    fn process(
        &self,
        delivery: &Delivery<Self::Input>,
        state: LaneState<'_>,
    ) -> impl Future<Output = Result<Outcome, StageError>> + Send;

    /// As [`crate::Stage::last_words`], with a last change of the lane's state that counts together with the dead letter. What
    /// was written before the record was rejected is still there.
    ///
    /// # Errors
    /// As [`ConcurrentStage::process`].
    fn last_words(
        &self,
        delivery: &Delivery<Self::Input>,
        failure: &Failure,
        change: &mut Change<'_>,
    ) -> Result<Vec<Output>, StageError> {
        let _ = (delivery, failure, change);
        Ok(Vec::new())
    }
}
