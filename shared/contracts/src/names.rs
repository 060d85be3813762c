//! What is said of an answer, as records, metrics and reports write it.

use crate::{AnswerStatus, Provenance};

impl AnswerStatus {
    /// Its name in records, metrics and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Extractive => "extractive",
            Self::NoContext => "no_context",
            Self::Expired => "expired",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Conflict => "conflict",
        }
    }
}

impl Provenance {
    /// Its name in records, metrics and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Cached => "cached",
            Self::Stale => "stale",
            Self::Degraded => "degraded",
        }
    }
}
