//! Which lanes this instance owns, and since when.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;
use weir_contracts::Lane;

/// Counts the times a lane was assigned. Work that was begun under another count is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LaneEpoch(u64);

/// The lanes owned now; shared between the loop, which changes it, and the processor, which drops what was revoked.
#[derive(Debug, Default)]
pub(crate) struct Ownership {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    assignments: u64,
    owned: HashMap<Lane, LaneEpoch>,
}

impl Ownership {
    pub(crate) fn assign(&self, lane: Lane) -> LaneEpoch {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.assignments += 1;
        let epoch = LaneEpoch(inner.assignments);
        inner.owned.insert(lane, epoch);
        epoch
    }

    pub(crate) fn revoke(&self, lane: Lane) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).owned.remove(&lane);
        self.changed.notify_waiters();
    }

    /// Returns when a lane is not owned under this count any more.
    pub(crate) async fn gone(&self, lane: Lane, epoch: LaneEpoch) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if !self.holds(lane, epoch) {
                return;
            }
            changed.await;
        }
    }

    pub(crate) fn holds(&self, lane: Lane, epoch: LaneEpoch) -> bool {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).owned.get(&lane) == Some(&epoch)
    }
}
