//! What a stage says of a record.

use std::fmt;
use std::time::Duration;

use weir_contracts::{AnyRecord, Lane, Topic};

use crate::{Change, Headers, StageError};

/// Classes of failures that make a dead letter; a label of metrics, so constants.
pub mod failure_class {
    /// The bytes are not a record of this topic.
    pub const UNDECODABLE: &str = "undecodable";
    /// The record breaks a rule of the stage.
    pub const INVALID: &str = "invalid";
    /// The record, or what it became, is larger than what Kafka accepts or a limit allows.
    pub const TOO_LARGE: &str = "too-large";
    /// The stage panicked on it.
    pub const PANIC: &str = "panic";
}

/// Why a record was rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One of [`failure_class`] or a constant of the stage's own.
    pub class: &'static str,
    /// What is wrong and what to do, for the person who looks at the dead letter. Never the text of a document.
    pub message: String,
}

impl Failure {
    /// The failure in a sentence for those downstream who wait for the record.
    #[must_use]
    pub fn told_by(&self, stage: &str) -> String {
        format!("dead letter of {stage} ({}): {}", self.class, self.message)
    }

    /// A failure of this class.
    pub fn new(class: &'static str, message: impl fmt::Display) -> Self {
        Self { class, message: message.to_string() }
    }
}

/// A record to be written.
pub struct Output {
    /// Where to.
    pub topic: Topic,
    /// Partition; the lane of the input when none.
    pub lane: Option<Lane>,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value; a tombstone when none.
    pub record: Option<Box<dyn AnyRecord>>,
    /// Headers beside those the runner carries over (trace context, tenant, revision, deadline).
    pub headers: Headers,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("topic", &self.topic).field("lane", &self.lane).finish_non_exhaustive()
    }
}

impl Output {
    /// A record for `topic`, in the lane of the input.
    pub fn new(topic: Topic, key: impl Into<Vec<u8>>, record: impl AnyRecord + 'static) -> Self {
        Self { topic, lane: None, key: Some(key.into()), record: Some(Box::new(record)), headers: Headers::default() }
    }

    /// A tombstone for `key`, in the lane of the input.
    pub fn tombstone(topic: Topic, key: impl Into<Vec<u8>>) -> Self {
        Self { topic, lane: None, key: Some(key.into()), record: None, headers: Headers::default() }
    }

    /// The same in another lane.
    #[must_use]
    pub fn in_lane(mut self, lane: Lane) -> Self {
        self.lane = Some(lane);
        self
    }

    /// The same with a header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.set(name, value);
        self
    }
}

/// What becomes of a record. Its outputs, its dead letter and its offset commit together or not at all.
#[derive(Debug)]
#[must_use]
pub enum Outcome {
    /// It became these records, perhaps none.
    Emit(Vec<Output>),
    /// Nothing needed to be done.
    Skip {
        /// Why; a label of metrics, so a constant.
        reason: &'static str,
        /// What is said about it all the same.
        outputs: Vec<Output>,
    },
    /// It can't be processed, however often it is tried: a dead letter.
    Reject {
        /// Why.
        failure: Failure,
        /// What is said about it beside the dead letter.
        outputs: Vec<Output>,
    },
    /// It can't be processed now, but perhaps later, and others need not wait for it: it comes back through the delay
    /// tiers, each time after twice as long, and becomes a dead letter after the last. Only for failures that pass by
    /// themselves and concern this record alone; a dependency that is away altogether is
    /// [`crate::StageError::Unavailable`], and what fails the same way every time is a rejection.
    RetryLater {
        /// Why.
        failure: Failure,
    },
    /// Nothing is wrong with it, it is only too early: it comes back through a delay tier after about this long, and may be
    /// postponed again as often as need be. The stage sees to it that this ends.
    Postpone {
        /// Why; the class is a label of metrics.
        failure: Failure,
        /// How long it is too early.
        wait: Duration,
    },
    /// What a last change of the lane's state says; the change counts together with it or not at all. Only stages whose
    /// records run side by side and that keep state.
    Finally(Finally),
}

/// The last change that a record makes.
pub struct Finally(Box<MakeChange>);

type MakeChange = dyn Fn(&mut Change<'_>) -> Result<Outcome, StageError> + Send + Sync;

impl Finally {
    /// Makes it.
    ///
    /// # Errors
    /// When the state can't be read: nothing has changed, and the record is processed again.
    pub fn make(&self, change: &mut Change<'_>) -> Result<Outcome, StageError> {
        (self.0)(change)
    }
}

impl fmt::Debug for Finally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Finally")
    }
}

impl Outcome {
    /// It became this record.
    pub fn emit(output: Output) -> Self {
        Self::Emit(vec![output])
    }

    /// It became these records.
    pub fn emit_all(outputs: impl IntoIterator<Item = Output>) -> Self {
        Self::Emit(outputs.into_iter().collect())
    }

    /// Nothing needed to be done.
    pub fn skip(reason: &'static str) -> Self {
        Self::Skip { reason, outputs: Vec::new() }
    }

    /// It is a dead letter.
    pub fn reject(failure: Failure) -> Self {
        Self::Reject { failure, outputs: Vec::new() }
    }

    /// It is to be tried again later.
    pub fn retry_later(failure: Failure) -> Self {
        Self::RetryLater { failure }
    }

    /// What this change says, which is not made unless what it says is true in the end. It may be asked more than once.
    pub fn finally(change: impl Fn(&mut Change<'_>) -> Result<Self, StageError> + Send + Sync + 'static) -> Self {
        Self::Finally(Finally(Box::new(change)))
    }

    /// The same, saying this too. Nothing is said of a record that is tried again; what is to be said of its end,
    /// [`crate::Stage::last_words`] says.
    pub fn and(mut self, output: Output) -> Self {
        match &mut self {
            Self::Emit(outputs) | Self::Skip { outputs, .. } | Self::Reject { outputs, .. } => outputs.push(output),
            Self::RetryLater { .. } | Self::Postpone { .. } | Self::Finally(_) => {}
        }
        self
    }

    /// What is written, beside a dead letter.
    #[must_use]
    pub fn outputs(&self) -> &[Output] {
        match self {
            Self::Emit(outputs) | Self::Skip { outputs, .. } | Self::Reject { outputs, .. } => outputs,
            Self::RetryLater { .. } | Self::Postpone { .. } | Self::Finally(_) => &[],
        }
    }
}
