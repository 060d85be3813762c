//! What travels beside a record.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Names of the headers Weir reads and writes.
pub mod header {
    /// W3C trace context of the step that produced the record.
    pub const TRACEPARENT: &str = "traceparent";
    /// Tenant of the record, for tools that do not decode it.
    pub const TENANT: &str = "weir-tenant";
    /// Revision fixed at first delivery, as its ordinal; kept over retries and replays.
    pub const REVISION: &str = "weir-revision";
    /// Where the batch of chunks lies that the record was made of, as an offset in its lane of `chunks`: it orders the
    /// builds of a revision, also when some of their batches come late.
    pub const POSITION: &str = "weir-position";
    /// On what the indexer writes to `extract.again`: it is no request, but says that the revision it names failed behind
    /// the extractor, so that the document sent again is no duplicate.
    pub const FAILED: &str = "weir-failed";
    /// How often the record was tried before, from 1.
    pub const ATTEMPT: &str = "weir-attempt";
    /// Stage that a delayed record returns to.
    pub const STAGE: &str = "weir-stage";
    /// When the record failed first, milliseconds since the Unix epoch.
    pub const FIRST_FAILURE_AT: &str = "weir-first-failure-at";
    /// When a delayed record is due, milliseconds since the Unix epoch.
    pub const NOT_BEFORE: &str = "weir-not-before";
    /// When the result is of no use any more, milliseconds since the Unix epoch.
    pub const DEADLINE: &str = "weir-deadline";
    /// Class of the failure that made a record a dead letter.
    pub const ERROR_CLASS: &str = "weir-error-class";
    /// Id of the dead letter.
    pub const DEAD_LETTER: &str = "weir-dead-letter";
    /// When the record became a dead letter, milliseconds since the Unix epoch.
    pub const DEAD_LETTER_AT: &str = "weir-dead-letter-at";
    /// Key the dead letter had where it was read; its key among the dead letters is its id.
    pub const DEAD_LETTER_KEY: &str = "weir-dead-letter-key";
    /// How often the dead letter was replayed.
    pub const REPLAYS: &str = "weir-replays";
    /// Whether a replayed record begins from the beginning, though a journal knows how far it was.
    pub const RESTART: &str = "weir-restart";
    /// Why the dead letter is parked: replaying many passes it over until somebody has looked at it.
    pub const PARKED: &str = "weir-parked";
    /// When it was parked, milliseconds since the Unix epoch.
    pub const PARKED_AT: &str = "weir-parked-at";
    /// Topic the dead letter was read from (KIP-1191).
    pub const DLQ_TOPIC: &str = "__dlq.errors.topic";
    /// Its partition (KIP-1191).
    pub const DLQ_PARTITION: &str = "__dlq.errors.partition";
    /// Its offset (KIP-1191).
    pub const DLQ_OFFSET: &str = "__dlq.errors.offset";
    /// Consumer group that rejected it (KIP-1191).
    pub const DLQ_GROUP: &str = "__dlq.errors.group";
    /// How often it was delivered (KIP-1191).
    pub const DLQ_DELIVERY_COUNT: &str = "__dlq.errors.delivery.count";
    /// Why it was rejected (KIP-1191).
    pub const DLQ_MESSAGE: &str = "__dlq.errors.message";
}

/// When a result is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(i64);

impl Deadline {
    /// A deadline at `millis` milliseconds since the Unix epoch.
    #[must_use]
    pub fn at_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn millis(self) -> i64 {
        self.0
    }

    /// Time left at `now`, or nothing when it has passed.
    #[must_use]
    pub fn remaining(self, now: SystemTime) -> Option<Duration> {
        let now = now.duration_since(UNIX_EPOCH).ok()?;
        let deadline = Duration::from_millis(u64::try_from(self.0).ok()?);
        deadline.checked_sub(now).filter(|left| !left.is_zero())
    }
}
