//! What `generate` remembers of the questions it works on: the few fields that are shown, out of its state topic.
//!
//! Texts are not among them: of passages only the number is read, of what a model said nothing.

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use weir_contracts::{Lane, RequestId, TenantId};
use weir_stage::StateValue;

/// How far a question is.
pub const JOURNAL: &str = "journal/";
/// When its owner last gave a sign of life, during a call.
pub const ALIVE: &str = "alive/";
/// Who waits for the answer of an idempotency key.
pub const KEY: &str = "key/";
/// Who waits for the answer to the same question.
pub const FLIGHT: &str = "flight/";

/// What a question is at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Passages are looked for.
    #[default]
    Retrieve,
    /// A model is asked.
    Model,
    /// The answer is made of what the model said.
    Finish,
    /// It waits until a limit allows it.
    Queued,
    /// It failed for good.
    Failed,
    /// A step this program does not know.
    #[serde(other)]
    Unknown,
}

/// A question's journal, as far as it is shown.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Journal {
    request_id: Option<RequestId>,
    tenant: Option<TenantId>,
    began_at: i64,
    step: Step,
    step_since: i64,
    owners: u32,
    passages: Option<Vec<IgnoredAny>>,
    calls: Vec<Call>,
    open: Vec<OpenCall>,
    failed: Option<String>,
}

/// A call of a model that has ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Call {
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
    /// Tokens received.
    pub output: u64,
    /// Whether they are estimated.
    pub estimated: bool,
    /// What it cost, US dollars.
    pub cost_usd: f64,
    /// How long it took, milliseconds.
    pub latency_ms: u64,
}

/// A call of a model that may be under way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpenCall {
    /// Name of the provider.
    pub provider: String,
    /// Model.
    pub model: String,
    /// Which attempt of the question.
    pub attempt: i32,
    /// When it was let go, milliseconds since the Unix epoch.
    pub since: i64,
}

/// An answer that several requests share, as far as it is shown.
#[derive(Debug, Clone, Deserialize)]
struct Slot {
    leader: String,
    request_id: RequestId,
    #[serde(default)]
    answer: Option<IgnoredAny>,
    #[serde(default)]
    waiters: Vec<Waiter>,
}

#[derive(Debug, Clone, Deserialize)]
struct Waiter {
    request_id: RequestId,
    asked_at: i64,
    deadline: Option<i64>,
}

/// Why requests share an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shared {
    /// They came with the same idempotency key.
    IdempotencyKey,
    /// They ask the same, at the same time.
    Question,
}

/// An answer that others wait for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Led {
    /// Why.
    pub by: Shared,
    /// How many wait.
    pub waiters: usize,
}

/// A question that has a journal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Standing {
    /// Its request.
    pub request_id: RequestId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The lane it is in.
    pub lane: Lane,
    /// What it is at.
    pub step: Step,
    /// Since when, milliseconds since the Unix epoch.
    pub step_since: i64,
    /// When work on it began, milliseconds since the Unix epoch; null when it has not.
    pub began_at: Option<i64>,
    /// Owners that have taken it up.
    pub owners: u32,
    /// Passages that were found; null before that is written down.
    pub passages: Option<usize>,
    /// Calls of models that have ended.
    pub calls: Vec<Call>,
    /// Calls that may be under way.
    pub open_calls: Vec<OpenCall>,
    /// The last sign of life of its owner during a call, milliseconds since the Unix epoch.
    pub alive_at: Option<i64>,
    /// Answers it is to give to others.
    pub leads: Vec<Led>,
    /// Why it failed.
    pub failed: Option<String>,
}

/// A question that waits for the answer of another one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Waiting {
    /// Its request.
    pub request_id: RequestId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The lane it is in.
    pub lane: Lane,
    /// Why it waits for that one.
    pub by: Shared,
    /// The request whose answer it waits for.
    pub leader: RequestId,
    /// How many wait for the same, this one included.
    pub waiters: usize,
    /// When it was asked, milliseconds since the Unix epoch.
    pub asked_at: i64,
    /// When its answer is of no use any more, milliseconds since the Unix epoch.
    pub deadline: Option<i64>,
}

/// What is remembered of questions without an answer.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Those that have a journal, oldest first.
    pub standings: Vec<Standing>,
    /// Those that wait for others.
    pub waiting: Vec<Waiting>,
}

impl Standing {
    /// Calls of models that were made.
    #[must_use]
    pub fn attempts(&self) -> usize {
        self.calls.len() + self.open_calls.len()
    }

    /// Since when there is something to tell of it, milliseconds since the Unix epoch.
    #[must_use]
    pub fn since(&self) -> i64 {
        self.began_at.unwrap_or(self.step_since)
    }

    /// Requests that wait for its answer.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.leads.iter().map(|led| led.waiters).sum()
    }
}

/// Whether a key of the state is about what is shown here.
#[must_use]
pub fn is_shown(key: &[u8]) -> bool {
    [JOURNAL, ALIVE, KEY, FLIGHT].iter().any(|start| key.starts_with(start.as_bytes()))
}

impl Memory {
    /// What the state says at `now`, milliseconds since the Unix epoch. Keys in different lanes are different things.
    #[must_use]
    pub fn of(state: &BTreeMap<(Lane, Vec<u8>), StateValue>, now: i64) -> Self {
        let named = |start: &'static str| {
            state.iter().filter_map(move |((lane, key), value)| {
                let key = std::str::from_utf8(key).ok()?;
                (key.starts_with(start) && value.is_valid_at(now)).then_some((*lane, key, value.bytes.as_slice()))
            })
        };
        let mut memory = Self::default();
        let mut leads: BTreeMap<(Lane, String), Vec<Led>> = BTreeMap::new();
        for (start, by) in [(KEY, Shared::IdempotencyKey), (FLIGHT, Shared::Question)] {
            for (lane, key, bytes) in named(start) {
                let Some(slot) = parsed::<Slot>(key, bytes).filter(|slot| slot.answer.is_none()) else { continue };
                let waiters = slot.waiters.len();
                memory.waiting.extend(waiting(lane, key, by, &slot));
                leads.entry((lane, slot.leader)).or_default().push(Led { by, waiters });
            }
        }
        for (lane, key, bytes) in named(JOURNAL) {
            let alive = state.get(&(lane, format!("{ALIVE}{key}").into_bytes()));
            let alive_at = alive.and_then(|value| std::str::from_utf8(&value.bytes).ok()?.parse().ok());
            let leads = leads.remove(&(lane, key.to_owned())).unwrap_or_default();
            let journal = parsed::<Journal>(key, bytes);
            memory.standings.extend(journal.and_then(|journal| standing(lane, journal, alive_at, leads)));
        }
        memory.standings.sort_by_key(Standing::since);
        memory
    }

    /// The same of these requests only.
    #[must_use]
    pub fn only(mut self, wanted: impl Fn(&RequestId, &TenantId) -> bool) -> Self {
        self.standings.retain(|of| wanted(&of.request_id, &of.tenant));
        self.waiting.retain(|of| wanted(&of.request_id, &of.tenant));
        self
    }
}

fn parsed<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Option<T> {
    match serde_json::from_slice(bytes) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(key, %error, "what generate wrote there can't be read: is this program older?");
            None
        }
    }
}

fn standing(lane: Lane, journal: Journal, alive_at: Option<i64>, leads: Vec<Led>) -> Option<Standing> {
    let Journal { request_id, tenant, began_at, step, step_since, owners, passages, calls, open, failed } = journal;
    Some(Standing {
        request_id: request_id?,
        tenant: tenant?,
        lane,
        step,
        step_since,
        began_at: Some(began_at).filter(|at| *at > 0),
        owners,
        passages: passages.map(|passages| passages.len()),
        calls,
        open_calls: open,
        alive_at,
        leads,
        failed,
    })
}

fn waiting<'a>(lane: Lane, key: &'a str, by: Shared, slot: &'a Slot) -> impl Iterator<Item = Waiting> + 'a {
    // key/<tenant>/..., flight/<tenant>/...
    let tenant = key.split('/').nth(1).and_then(|tenant| TenantId::parse(tenant).ok());
    slot.waiters.iter().filter_map(move |waiter| {
        Some(Waiting {
            request_id: waiter.request_id.clone(),
            tenant: tenant.clone()?,
            lane,
            by,
            leader: slot.request_id.clone(),
            waiters: slot.waiters.len(),
            asked_at: waiter.asked_at,
            deadline: waiter.deadline,
        })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;

    const NOW: i64 = 1_000_000;

    fn memory(entries: &[(i32, &str, Value, Option<i64>)]) -> Memory {
        let entries = entries.iter().map(|(lane, key, value, expires_at)| {
            let value = StateValue { bytes: serde_json::to_vec(value).unwrap(), expires_at: *expires_at };
            ((Lane(*lane), key.as_bytes().to_vec()), value)
        });
        Memory::of(&entries.collect(), NOW)
    }

    fn journal(request: &str, began_at: i64, step: &str) -> Value {
        json!({
            "request_id": request, "tenant": "acme", "began_at": began_at, "step": step, "step_since": began_at + 100,
            "owners": 2, "accounts": ["account/acme"], "passages": [{"text": "a secret"}, {"text": "another"}],
            "calls": [{"provider": "p", "model": "m", "attempt": 1, "status": "server", "input": 7, "cached": 0,
                       "output": 0, "estimated": true, "cost_usd": 0.5, "latency_ms": 30}],
            "open": [{"provider": "p", "model": "m", "attempt": 2, "since": began_at + 200, "reservation": null,
                      "accounts": [], "price": {}, "input": 7, "honours_idempotency": true}],
            "reply": {"text": "said in secret"}, "something_new": 1,
        })
    }

    fn slot(leader: &str, request: &str, waiters: &[&str], answer: Value) -> Value {
        let waiters = waiters.iter().map(|id| json!({"request_id": id, "asked_at": 5, "deadline": null}));
        json!({"fingerprint": "f", "leader": leader, "request_id": request, "answer": answer,
               "waiters": waiters.collect::<Vec<_>>(), "keys": []})
    }

    #[test]
    fn a_journal_is_told_with_its_sign_of_life_and_who_waits_for_it() {
        let memory = memory(&[
            (3, "journal/07", journal("late", 900, "model"), None),
            (4, "journal/07", journal("early", 800, "retrieve"), None),
            (3, "alive/journal/07", json!(1_500), Some(NOW + 1)),
            (3, "key/acme/1f", slot("journal/07", "late", &["w1", "w2"], Value::Null), None),
            (3, "flight/acme/2f/3f", slot("journal/07", "late", &["w3"], Value::Null), None),
        ]);
        let ids: Vec<_> = memory.standings.iter().map(|of| of.request_id.as_str()).collect();
        assert_eq!(ids, ["early", "late"], "oldest first");
        let (early, late) = (memory.standings.first().unwrap(), memory.standings.last().unwrap());
        assert_eq!((early.alive_at, early.waiters()), (None, 0), "the same key in another lane is another thing");
        assert_eq!((late.alive_at, late.waiters(), late.attempts()), (Some(1_500), 3, 2));
        assert_eq!((late.passages, late.owners, late.step), (Some(2), 2, Step::Model));
        assert_eq!(late.calls.first().unwrap().status, "server");
        assert_eq!(late.open_calls.first().unwrap().since, 1_100);
        let waiting: Vec<_> = memory.waiting.iter().map(|of| (of.request_id.as_str(), of.by, of.waiters)).collect();
        let (key, question) = (Shared::IdempotencyKey, Shared::Question);
        assert_eq!(waiting, [("w1", key, 2), ("w2", key, 2), ("w3", question, 1)]);
        assert!(memory.waiting.iter().all(|of| of.leader.as_str() == "late" && of.tenant.as_str() == "acme"));
        let only = memory.only(|request, _| request.as_str() == "w2");
        assert_eq!((only.standings.len(), only.waiting.len()), (0, 1));
    }

    #[test]
    fn what_is_over_or_written_by_another_version_does_not_hide_the_rest() {
        let memory = memory(&[
            (0, "journal/1", journal("forgotten", 1, "failed"), Some(NOW)),
            (0, "journal/2", journal("kept", 1, "failed"), Some(NOW + 1)),
            (0, "journal/3", journal("newer", 2, "step-of-tomorrow"), None),
            (0, "journal/4", json!("no journal at all"), None),
            (0, "key/acme/1f", slot("journal/9", "done", &["w1"], json!({"text": "an answer"})), None),
        ]);
        let told: Vec<_> = memory.standings.iter().map(|of| (of.request_id.as_str(), of.step)).collect();
        assert_eq!(told, [("kept", Step::Failed), ("newer", Step::Unknown)]);
        assert!(memory.waiting.is_empty(), "who was answered does not wait");
    }

    #[test]
    fn no_text_is_read() {
        let memory = memory(&[(0, "journal/1", journal("one", 1, "finish"), None)]);
        let all = format!("{} {memory:?}", serde_json::to_string(&memory.standings).unwrap());
        assert!(!all.contains("secret"), "{all}");
    }

    #[test]
    fn cached_answers_and_accounts_are_not_read() {
        for (key, shown) in [
            ("journal/1", true),
            ("alive/journal/1", true),
            ("key/acme/1", true),
            ("flight/acme/1/2", true),
            ("answer/acme/1", false),
            ("account/acme", false),
        ] {
            assert_eq!(is_shown(key.as_bytes()), shown, "{key}");
        }
    }
}
