//! What a running stage says of itself.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// State of one stage of a service, for health checks and tests.
#[derive(Debug, Default)]
pub struct StageStatus {
    joined: AtomicBool,
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
        self.lanes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}
