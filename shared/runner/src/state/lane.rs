//! A lane's state as one of the records sees it that run side by side.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, OwnedMutexGuard};
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
    turns: Arc<Mutex<()>>,
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
    fn begin(&self) -> ViewFuture<'_, Box<dyn LaneChange + '_>> {
        Box::pin(async { Ok(Box::new(self.turn().await?) as Box<dyn LaneChange>) })
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
    /// Waits until nobody else changes the lane's state.
    pub(crate) async fn turn(&self) -> Result<Turn<'_>, StageError> {
        let guard = Arc::clone(&self.turns).lock_owned().await;
        if self.ownership.holds(self.lane, self.epoch) { Ok(Turn { of: self, guard }) } else { Err(self.gone()) }
    }

    async fn committed_to(&self, number: u64) -> Result<(), StageError> {
        let mut watch = self.stores.watch(self.lane, self.epoch).map_err(|_| self.gone())?;
        watch.wait_for(|to| *to >= number).await.map(|_| ()).map_err(|_| self.gone())
    }
}

/// The lane's others wait until this is dropped.
pub(crate) struct Turn<'a> {
    of: &'a LaneHandle,
    guard: OwnedMutexGuard<()>,
}

impl Turn<'_> {
    /// Writes, and forgets keys that have expired by `now`, at most `limit` of them. Gives what the others wait for.
    pub(crate) fn close(
        self,
        mut writes: Vec<Write>,
        now: i64,
        limit: usize,
    ) -> Result<OwnedMutexGuard<()>, StoreError> {
        let LaneHandle { stores, lane, epoch, .. } = self.of;
        let expired = stores.expired(*lane, *epoch, now, limit)?;
        let fresh = |key: &Vec<u8>| !writes.iter().any(|(written, _)| written == key);
        let expired: Vec<Write> = expired.into_iter().filter(fresh).map(|key| (key, None)).collect();
        writes.extend(expired);
        if !writes.is_empty() {
            stores.append(*lane, *epoch, writes);
        }
        Ok(self.guard)
    }
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
