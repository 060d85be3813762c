//! How far a question is: what its next owner must know after a crash. Kept in the state of its lane until it is answered.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use weir_contracts::{RequestId, TenantId};
use weir_llm::{Call, Completion, Finish, PriceConfig, Reservation, TokenUsage, ToolCall, Usd};
use weir_stage::{Change, StageError};

use crate::Passage;
use crate::agent::AgentJournal;

/// What a question is at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// It was admitted; passages are looked for.
    #[default]
    Retrieve,
    /// A model is asked.
    Model,
    /// The answer is made of what the model said.
    Finish,
    /// It waits until a limit allows it.
    Queued,
    /// It failed for good and lies among the dead letters.
    Failed,
}

/// Bytes of a part of the journal, at most: what is found, what a model says, how far an agent is. All of it together must
/// fit into a record.
pub(crate) const KEPT_BYTES: usize = 256 << 10;

/// A question's journal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Journal {
    /// Which request.
    pub request_id: Option<RequestId>,
    /// Whose.
    pub tenant: Option<TenantId>,
    /// When work on it began, milliseconds since the Unix epoch.
    pub began_at: i64,
    /// What it is at.
    pub step: Step,
    /// Since when.
    pub step_since: i64,
    /// Owners that have taken it up, this one included.
    pub owners: u32,
    /// Accounts that count it as under way; empty when none has limits, or it is not under way.
    pub accounts: Vec<String>,
    /// What was found.
    pub passages: Option<Vec<Passage>>,
    /// Why that may be old, or nothing.
    pub fallback: Option<String>,
    /// Calls that have ended.
    pub calls: Vec<Spent>,
    /// How many of them have a usage record already, written when it failed.
    pub reported: usize,
    /// Calls that may be under way.
    pub open: Vec<OpenCall>,
    /// The highest attempt that was let go, also of an owner that is gone: what it streamed must not be taken for a part of what
    /// comes now.
    pub last_attempt: i32,
    /// What the model said.
    pub reply: Option<StoredReply>,
    /// How far it is where the model may call tools.
    pub agent: Option<AgentJournal>,
    /// Keys under which others wait for its answer.
    pub leads: Vec<String>,
    /// Why it failed.
    pub failed: Option<String>,
    /// How often it was begun anew because somebody wanted that.
    pub restarts: u32,
}

/// A call that has ended, or is not known to have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Name of the provider.
    pub provider: String,
    /// Model.
    pub model: String,
    /// Which attempt of the question.
    pub attempt: i32,
    /// `ok`, the class of the error, or `unknown`.
    pub status: String,
    /// Tokens sent.
    pub input: u64,
    /// Those of them that the provider had in its cache.
    pub cached: u64,
    /// Tokens received.
    pub output: u64,
    /// Whether they are estimated.
    pub estimated: bool,
    /// What it cost, US dollars.
    pub cost_usd: f64,
    /// How long it took, milliseconds.
    pub latency_ms: u64,
}

/// Status of a call whose owner crashed before it heard the answer.
const UNKNOWN: &str = "unknown";

impl Spent {
    /// What is known of a call that has ended.
    #[must_use]
    pub fn of(call: &Call) -> Self {
        Self {
            provider: call.provider.clone(),
            model: call.model.clone(),
            attempt: call.attempt,
            status: call.status.to_owned(),
            input: call.usage.input,
            cached: call.usage.cached,
            output: call.usage.output,
            estimated: call.usage.estimated,
            cost_usd: call.cost.0,
            latency_ms: u64::try_from(call.latency.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Its tokens.
    #[must_use]
    pub fn usage(&self) -> TokenUsage {
        TokenUsage { input: self.input, cached: self.cached, output: self.output, estimated: self.estimated }
    }

    /// What it cost.
    #[must_use]
    pub fn cost(&self) -> Usd {
        Usd(self.cost_usd)
    }
}

/// A call as it was let go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenCall {
    /// Name of the provider.
    pub provider: String,
    /// Model.
    pub model: String,
    /// Which attempt of the question.
    pub attempt: i32,
    /// When it was let go, milliseconds since the Unix epoch.
    pub since: i64,
    /// What it was charged.
    pub reservation: Option<Reservation>,
    /// The accounts that were charged.
    pub accounts: Vec<String>,
    /// By what it is paid.
    pub price: PriceConfig,
    /// Tokens of the request, at most.
    pub input: u64,
    /// Whether the provider charges a repeat with the same idempotency key only once.
    pub honours_idempotency: bool,
}

impl OpenCall {
    /// What is said of it when nobody knows what came of it: it may have cost what was sent.
    #[must_use]
    pub fn in_doubt(&self, now: i64) -> Spent {
        Spent {
            provider: self.provider.clone(),
            model: self.model.clone(),
            attempt: self.attempt,
            status: UNKNOWN.to_owned(),
            input: self.input,
            cached: 0,
            output: 0,
            estimated: true,
            cost_usd: TokenUsage { input: self.input, ..TokenUsage::default() }.cost(&self.price).0,
            latency_ms: u64::try_from(now.saturating_sub(self.since)).unwrap_or(0),
        }
    }
}

/// What a model said, to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoredReply {
    /// The text.
    pub text: String,
    /// Whether it was cut at its limit of tokens.
    pub cut: bool,
    /// Name of the provider.
    pub provider: String,
    /// Model.
    pub model: String,
    /// Which attempt of the question.
    pub attempt: i32,
    /// Tools that it calls.
    pub tool_calls: Vec<ToolCall>,
}

impl StoredReply {
    /// What this call said.
    #[must_use]
    pub fn of(call: &Call, said: &Completion) -> Self {
        let text = said.text.get(..said.text.floor_char_boundary(KEPT_BYTES)).unwrap_or_default();
        Self {
            text: text.to_owned(),
            cut: said.finish == Finish::Length || text.len() < said.text.len(),
            provider: call.provider.clone(),
            model: call.model.clone(),
            attempt: call.attempt,
            tool_calls: said.tool_calls.clone(),
        }
    }
}

impl Journal {
    /// The attempt that comes next: above every one before, whoever made it.
    #[must_use]
    pub fn next_attempt(&self) -> i32 {
        self.last_attempt.saturating_add(1)
    }

    /// Whether somebody works, or was working, on it.
    pub(crate) fn is_under_way(&self) -> bool {
        match self.step {
            Step::Retrieve | Step::Model | Step::Finish => self.began_at > 0,
            Step::Queued | Step::Failed => false,
        }
    }

    /// Takes out the call of this attempt, which has ended.
    pub(crate) fn take_open(&mut self, attempt: i32) -> Option<OpenCall> {
        let at = self.open.iter().position(|open| open.attempt == attempt)?;
        Some(self.open.swap_remove(at))
    }

    /// Forgets what was found and said; what it cost stays.
    pub(crate) fn restart(&mut self) {
        (self.passages, self.fallback, self.reply, self.agent) = (None, None, None, None);
        self.restarts += 1;
    }

    /// Goes on to a step.
    pub(crate) fn enter(&mut self, step: Step, now: i64) {
        (self.step, self.step_since) = (step, now);
    }
}

/// A value of the state.
///
/// # Errors
/// When the state can't be read.
pub(crate) fn load<T: DeserializeOwned>(change: &Change<'_>, key: &str) -> Result<Option<T>, StageError> {
    let Some(bytes) = change.get(key)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(StageError::Fatal(format!(
            "the state under {key} can't be read: {error}. Run the version of the service that wrote it"
        ))),
    }
}

/// A value as the state keeps it.
pub(crate) fn stored(value: &impl Serialize) -> Result<Vec<u8>, StageError> {
    serde_json::to_vec(value).map_err(|error| StageError::Fatal(error.to_string()))
}
