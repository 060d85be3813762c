//! A lane's state as one of the records sees it that run side by side.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use weir_contracts::Lane;
use weir_stage::{LaneChange, LaneView, StageError, StateValue, ViewFuture};

use super::store::{StoreError, Stores};
use super::view::Write;
use crate::mechanism::{Mechanism, is_switched_off};
use crate::ownership::{LaneEpoch, Ownership};

/// See [`LaneView`].
pub(crate) struct LaneHandle {
    stores: Arc<Stores>,
    ownership: Arc<Ownership>,
    lane: Lane,
    epoch: LaneEpoch,
    turns: Arc<std::sync::Mutex<()>>,
    /// Number of the record's last write, see [`super::log::LaneLog`].
    written: AtomicU64,
}

impl LaneHandle {
    pub(crate) fn new(
        stores: &Arc<Stores>,
        ownership: &Arc<Ownership>,
        lane: Lane,
        epoch: LaneEpoch,
    ) -> Result<Self, StoreError> {
        let turns = stores.turns(lane, epoch)?;
        let (stores, ownership) = (Arc::clone(stores), Arc::clone(ownership));
        Ok(Self { stores, ownership, lane, epoch, turns, written: AtomicU64::new(0) })
    }

    fn gone(&self) -> StageError {
        StageError::unavailable("lane", StoreError::Gone(self.lane))
    }
}

impl LaneView for LaneHandle {
    fn begin(&self) -> Result<Box<dyn LaneChange + '_>, StageError> {
        let turn = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if self.ownership.holds(self.lane, self.epoch) {
            Ok(Box::new(Turn { of: self, _turn: turn }))
        } else {
            Err(self.gone())
        }
    }

    fn committed(&self) -> ViewFuture<'_> {
        Box::pin(self.committed_to(self.written.load(Ordering::Acquire)))
    }

    fn hold_lease(&self) -> ViewFuture<'_> {
        Box::pin(async {
            if is_switched_off(Mechanism::Lease) {
                return Ok(());
            }
            while self.ownership.lease_has_ended() {
                // Kafka takes it only from the owner.
                let number = self.stores.append(self.lane, self.epoch, Vec::new()).ok_or_else(|| self.gone())?;
                self.committed_to(number).await?;
            }
            if self.ownership.holds(self.lane, self.epoch) { Ok(()) } else { Err(self.gone()) }
        })
    }
}

impl LaneHandle {
    async fn committed_to(&self, number: u64) -> Result<(), StageError> {
        let mut watch = self.stores.watch(self.lane, self.epoch).map_err(|_| self.gone())?;
        watch.wait_for(|to| *to >= number).await.map(|_| ()).map_err(|_| self.gone())
    }
}

/// The lane's others wait until this is dropped.
struct Turn<'a> {
    of: &'a LaneHandle,
    _turn: MutexGuard<'a, ()>,
}

impl LaneChange for Turn<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<StateValue>, StageError> {
        self.of.stores.get(self.of.lane, self.of.epoch, key).map_err(|error| match error {
            StoreError::Gone(_) => self.of.gone(),
            disk @ StoreError::Disk { .. } => StageError::Fatal(disk.to_string()),
        })
    }

    fn finish(self: Box<Self>, writes: Vec<Write>) {
        if let Some(number) = self.of.stores.append(self.of.lane, self.of.epoch, writes) {
            self.of.written.store(number, Ordering::Release);
        }
    }
}
