//! Which lanes this instance owns, and since when.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use weir_contracts::Lane;

/// Counts the times a lane was assigned. Work that was begun under another count is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LaneEpoch(u64);

/// The lanes owned now; shared between the loop, which changes it, and the processor, which drops what was revoked.
#[derive(Debug)]
pub(crate) struct Ownership {
    inner: Mutex<Inner>,
    changed: Notify,
    lease: Duration,
}

#[derive(Debug, Default)]
struct Inner {
    assignments: u64,
    owned: HashMap<Lane, LaneEpoch>,
    /// When the last commit began that counted.
    proven: Option<Instant>,
}

impl Ownership {
    /// `session`: how long the group waits for a sign of life of this instance before it gives its lanes to others.
    pub(crate) fn new(session: Duration) -> Self {
        // Signs of life come five times a session, so at least this much of one was left when a commit counted.
        Self { inner: Mutex::default(), changed: Notify::new(), lease: session / 2 }
    }

    /// A commit counted that began then: the group still knew this instance.
    pub(crate) fn prove(&self, begun: Instant) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).proven = Some(begun);
    }

    /// Whether the last commit that counted is so long ago that the lanes may be others' by now.
    pub(crate) fn lease_has_ended(&self) -> bool {
        let proven = self.inner.lock().unwrap_or_else(PoisonError::into_inner).proven;
        proven.is_none_or(|begun| begun.elapsed() >= self.lease)
    }

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
