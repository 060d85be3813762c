//! Answers that several requests share: those with one idempotency key, and equal questions at one time. Who comes while the
//! first one is worked on leaves a durable entry and waits outside the lane's window; the first one's final transaction answers
//! all of them, success or failure.

use serde::{Deserialize, Serialize};
use weir_contracts::{Answer, Question, RequestId, length_prefixed_hash};

use crate::ask::Ask;

/// Requests that may wait for one answer.
const MAX_WAITERS: usize = 2_000;

/// One answer and who waits for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Slot {
    /// Of what was asked.
    pub(crate) fingerprint: String,
    /// Journal key of the request that is worked on.
    pub(crate) leader: String,
    /// Its id.
    pub(crate) request_id: RequestId,
    /// The answer, once it is there.
    #[serde(default)]
    pub(crate) answer: Option<Box<Answer>>,
    /// Who waits for it.
    #[serde(default)]
    pub(crate) waiters: Vec<Waiter>,
    /// Other slots that the same answer ends.
    #[serde(default)]
    pub(crate) keys: Vec<String>,
}

/// A request that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Waiter {
    /// Its id.
    pub(crate) request_id: RequestId,
    /// When it was asked, milliseconds since the Unix epoch.
    pub(crate) asked_at: i64,
    /// When its answer is of no use any more, milliseconds since the Unix epoch.
    pub(crate) deadline: Option<i64>,
}

/// What a request finds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Found {
    /// Nobody has asked that; or this request itself has, before it had to wait or its owner crashed.
    Leads,
    /// It was answered.
    Answered(Box<Answer>),
    /// Another one is worked on, and this one waits with it.
    Joined,
    /// So many wait that no more may.
    Full,
    /// Something else was asked under the same key.
    Conflict(RequestId),
}

impl Slot {
    /// A slot of which this request is the first.
    pub(crate) fn led_by(ask: &Ask<'_>, fingerprint: String) -> Self {
        Self {
            fingerprint,
            leader: ask.journal_key(),
            request_id: ask.question.request_id.clone(),
            answer: None,
            waiters: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// What a request finds here; one that joins is noted.
    pub(crate) fn visit(&mut self, ask: &Ask<'_>, fingerprint: &str) -> Found {
        if self.fingerprint != fingerprint {
            return Found::Conflict(self.request_id.clone());
        }
        if let Some(answer) = &self.answer {
            return Found::Answered(answer.clone());
        }
        if self.leader == ask.journal_key() {
            return Found::Leads;
        }
        if self.waiters.len() >= MAX_WAITERS {
            return Found::Full;
        }
        self.waiters.push(Waiter {
            request_id: ask.question.request_id.clone(),
            asked_at: ask.question.created_at,
            deadline: ask.deadline.map(weir_contracts::Deadline::millis),
        });
        Found::Joined
    }
}

/// Where the answer of an idempotency key is kept.
pub(crate) fn key_slot(question: &Question, key: &str) -> String {
    format!("key/{}/{}", question.tenant, hex::encode(length_prefixed_hash(&[key.as_bytes()])))
}

/// What a question asks, whoever asks it and whenever.
pub(crate) fn fingerprint(question: &Question, text: &str, version: &str) -> String {
    let filter: Vec<u8> = question
        .filter
        .iter()
        .flat_map(|(name, value)| length_prefixed_hash(&[name.as_bytes(), value.as_bytes()]))
        .collect();
    let top_k = question.top_k.map(i32::to_le_bytes);
    let parts: [&[u8]; 5] = [
        question.tenant.as_str().as_bytes(),
        text.as_bytes(),
        version.as_bytes(),
        &filter,
        top_k.as_ref().map_or(&[], |bytes| bytes.as_slice()),
    ];
    hex::encode(length_prefixed_hash(&parts))
}
