//! What a running stage says of itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use weir_contracts::Lane;

/// Why a lane does not flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PauseReason {
    /// A dependency is not there; heals by itself.
    Unavailable {
        /// Which.
        dependency: &'static str,
        /// What happened.
        reason: String,
    },
    /// Records between the committed offset and the start of the log are gone; a person must decide.
    Gap {
        /// First offset that was not read.
        from: i64,
        /// First offset that still exists.
        to: i64,
    },
    /// Too many records were rejected; a person must look.
    Flood {
        /// What was counted.
        reason: String,
    },
}

impl PauseReason {
    /// The label of the metric.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "unavailable",
            Self::Gap { .. } => "gap",
            Self::Flood { .. } => "flood",
        }
    }
}

impl std::fmt::Display for PauseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unavailable { dependency, reason } => write!(f, "{dependency} is unavailable: {reason}"),
            Self::Gap { from, to } => write!(f, "records {from}..{to} are gone from the log"),
            Self::Flood { reason } => f.write_str(reason),
        }
    }
}

/// State of one stage of a service, for health checks and tests.
#[derive(Debug, Default)]
pub struct StageStatus {
    /// When the loop last went round, or on behind a call that may take long; none before it begins.
    turned: Mutex<Option<Instant>>,
    joined: AtomicBool,
    /// Whether the loop sleeps until the next commit.
    alarm: AtomicBool,
    unavailable: Mutex<Option<PauseReason>>,
    /// Processors that wait for a dependency.
    waiting: AtomicUsize,
    lanes: Mutex<BTreeMap<Lane, Option<PauseReason>>>,
}

impl StageStatus {
    /// Whether the stage has joined its consumer group and got its lanes (perhaps none).
    #[must_use]
    pub fn ready(&self) -> bool {
        self.joined.load(Ordering::Acquire)
    }

    /// The lanes this instance owns, with the reason for those that do not flow.
    #[must_use]
    pub fn lanes(&self) -> BTreeMap<Lane, Option<PauseReason>> {
        let mut lanes = lock(&self.lanes).clone();
        if let Some(reason) = lock(&self.unavailable).as_ref() {
            for pause in lanes.values_mut() {
                pause.get_or_insert_with(|| reason.clone());
            }
        }
        lanes
    }

    /// The loop goes round.
    pub(crate) fn turn(&self) {
        *lock(&self.turned) = Some(Instant::now());
    }

    /// The loop does not go round yet, but what it waited for has answered, if only that it failed.
    pub(crate) fn goes_on(&self) {
        if let Some(turned) = lock(&self.turned).as_mut() {
            *turned = Instant::now();
        }
    }

    /// How long ago the loop last went round or on; zero before it begins.
    pub(crate) fn stands_still_for(&self) -> Duration {
        lock(&self.turned).map_or(Duration::ZERO, |turned| turned.elapsed())
    }

    /// The loop sleeps until the next commit, or does not any more.
    pub(crate) fn set_alarm(&self, set: bool) {
        self.alarm.store(set, Ordering::Release);
    }

    /// Whether the loop wakes up in time for the commit of what is done now, with nobody waking it.
    pub(crate) fn wakes_in_time(&self) -> bool {
        self.alarm.load(Ordering::Acquire)
    }

    pub(crate) fn joined(&self, joined: bool) {
        self.joined.store(joined, Ordering::Release);
    }

    pub(crate) fn owned(&self, lane: Lane) {
        lock(&self.lanes).insert(lane, None);
    }

    pub(crate) fn stopped(&self, lane: Lane, reason: PauseReason) {
        lock(&self.lanes).insert(lane, Some(reason));
    }

    pub(crate) fn gone(&self, lane: Lane) {
        lock(&self.lanes).remove(&lane);
    }

    /// A processor waits for a dependency until what is returned is dropped; so do the lanes behind it.
    pub(crate) fn wait(self: &Arc<Self>) -> Waiting {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        Waiting(Arc::clone(self))
    }

    /// Processors that wait for a dependency.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }
}

/// A processor that waits for a dependency.
pub(crate) struct Waiting(Arc<StageStatus>);

impl Waiting {
    /// What for.
    pub(crate) fn on(&self, reason: PauseReason) {
        *lock(&self.0.unavailable) = Some(reason);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut unavailable = lock(&self.0.unavailable);
        if self.0.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            *unavailable = None;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
