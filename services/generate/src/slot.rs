//! Answers that several requests share: those with one idempotency key, and equal questions at one time. Who comes while the
//! first one is worked on leaves a durable entry and waits outside the lane's window; the first one's final transaction answers
//! all of them, success or failure.

use serde::{Deserialize, Serialize};
use weir_contracts::{Answer, AnswerStatus, Question, RequestId, length_prefixed_hash};
use weir_stage::{Change, StageError};

use crate::ask::Ask;
use crate::draft::text_hash;
use crate::journal::{load, stored};

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

/// A request as a slot sees it.
#[derive(Debug, Clone)]
pub(crate) struct Visitor {
    journal: String,
    waiter: Waiter,
}

impl Visitor {
    pub(crate) fn of(ask: &Ask<'_>) -> Self {
        let waiter = Waiter {
            request_id: ask.question.request_id.clone(),
            asked_at: ask.question.created_at,
            deadline: ask.deadline.map(weir_contracts::Deadline::millis),
        };
        Self { journal: ask.journal_key(), waiter }
    }
}

/// What a request finds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Found {
    /// Nobody has asked that; or this request itself has, before it had to wait or its owner crashed.
    Leads,
    /// It was answered.
    Answered(Box<Answer>),
    /// Another one is worked on, and this one may wait with it.
    Running,
    /// So many wait that no more may.
    Full,
    /// Something else was asked under the same key.
    Conflict(RequestId),
}

impl Slot {
    /// A slot of which this request is the first.
    fn led_by(visitor: &Visitor, fingerprint: String) -> Self {
        Self {
            fingerprint,
            leader: visitor.journal.clone(),
            request_id: visitor.waiter.request_id.clone(),
            answer: None,
            waiters: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// What a request finds here.
    fn visit(&self, visitor: &Visitor, fingerprint: &str) -> Found {
        if self.fingerprint != fingerprint {
            return Found::Conflict(self.request_id.clone());
        }
        if let Some(answer) = &self.answer {
            return Found::Answered(answer.clone());
        }
        if self.leader == visitor.journal {
            return Found::Leads;
        }
        if self.waiters.len() >= MAX_WAITERS { Found::Full } else { Found::Running }
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

/// Looks into a slot, and takes it when nobody has: none when this request is the first.
pub(crate) fn claim(
    change: &mut Change<'_>,
    key: &str,
    asked: &str,
    visitor: &Visitor,
) -> Result<Option<Found>, StageError> {
    let Some(slot) = load::<Slot>(change, key)? else {
        change.put(key, stored(&Slot::led_by(visitor, asked.to_owned()))?);
        return Ok(None);
    };
    Ok(Some(slot.visit(visitor, asked)).filter(|found| *found != Found::Leads))
}

/// Lets a request wait for the one that is worked on; false when none is any more. To be made true together with the request's
/// own end, or it could be answered twice.
pub(crate) fn wait(change: &mut Change<'_>, key: &str, asked: &str, visitor: &Visitor) -> Result<bool, StageError> {
    let Some(mut slot) = load::<Slot>(change, key)? else { return Ok(false) };
    let running = slot.visit(visitor, asked) == Found::Running;
    if running {
        slot.waiters.push(visitor.waiter.clone());
        change.put(key, stored(&slot)?);
    }
    Ok(running)
}

/// Those who wait with a request that itself waits with another one from now on wait with that one, too.
pub(crate) fn hand_over(change: &mut Change<'_>, leads: &[String], own: &str, to: &str) -> Result<(), StageError> {
    let Some(mut joined) = load::<Slot>(change, to)? else { return Ok(()) };
    for key in leads {
        let Some(slot) = load::<Slot>(change, key)?.filter(|slot| slot.leader == own) else { continue };
        joined.waiters.extend(slot.waiters);
        joined.keys.push(key.clone());
        let following = Slot { leader: joined.leader.clone(), waiters: Vec::new(), ..slot };
        change.put(key, stored(&following)?);
    }
    change.put(to, stored(&joined)?);
    Ok(())
}

/// Ends the slots that a request leads: those of idempotency keys keep the answer, for so many milliseconds, if it is one.
/// Gives everybody who waited.
pub(crate) fn close(
    change: &mut Change<'_>,
    leads: &[String],
    own: &str,
    keep: Option<(&Answer, i64)>,
) -> Result<Vec<Waiter>, StageError> {
    let mut waiters = Vec::new();
    let mut keys: Vec<String> = leads.to_vec();
    while let Some(key) = keys.pop() {
        let Some(mut slot) = load::<Slot>(change, &key)?.filter(|slot| slot.leader == own) else { continue };
        waiters.append(&mut slot.waiters);
        keys.append(&mut slot.keys);
        match keep.filter(|_| key.starts_with("key/")) {
            Some((answer, window)) => {
                slot.answer = Some(Box::new(answer.clone()));
                let until = change.now().saturating_add(window);
                change.put_until(&key, stored(&slot)?, until);
            }
            None => change.remove(&key),
        }
    }
    Ok(waiters)
}

/// The answer of one request as that of another one that waited for it.
pub(crate) fn shared(answer: &Answer, waiter: &Waiter, now: i64) -> Answer {
    let late = waiter.deadline.is_some_and(|deadline| deadline <= now);
    let answer = as_answer_of(answer, &waiter.request_id, waiter.asked_at);
    if !late {
        return answer;
    }
    let reason = "the deadline passed while it waited for another request to be answered";
    Answer {
        status: AnswerStatus::Expired,
        reason: Some(reason.to_owned()),
        text: String::new(),
        text_hash: text_hash(""),
        citations: Vec::new(),
        ..answer
    }
}

/// The same answer, byte for byte, under another request's id.
pub(crate) fn as_answer_of(answer: &Answer, request_id: &RequestId, asked_at: i64) -> Answer {
    Answer {
        request_id: request_id.clone(),
        answered_with: Some(answer.answered_with.clone().unwrap_or_else(|| answer.request_id.clone())),
        // Its pieces stream under the other's id.
        attempt: 0,
        asked_at,
        ..answer.clone()
    }
}
