//! What the provider has done and would put on its bill, by its own count.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The provider's books: every request of a completion since it started, or since they were last forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Books {
    /// Of all calls.
    pub sums: Sums,
    /// Of the calls of each `Idempotency-Key`; calls without one are only in `sums`.
    pub keys: BTreeMap<String, Sums>,
    /// The calls, in the order they came.
    pub calls: Vec<Entry>,
}

/// Calls, and the tokens of those that are charged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// How many came, whatever became of them.
    pub calls: u64,
    /// How many are charged.
    pub charged_calls: u64,
    /// Tokens of the input of charged calls.
    pub input_tokens: u64,
    /// Those among them that were in the provider's cache.
    pub cached_tokens: u64,
    /// Tokens of the output of charged calls.
    pub output_tokens: u64,
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Since the provider started, on a clock that never jumps.
    pub since_start_ms: u64,
    /// Since 1970, on the wall clock.
    pub unix_ms: u64,
    /// Header `Idempotency-Key`.
    pub idempotency_key: Option<String>,
    /// Model that was asked for.
    pub model: String,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// What the provider did: the `kind` of a behaviour, after every choice and wait; `down` in an outage; `repeat` for
    /// an answer given before, `in-progress` for a key whose first call still runs.
    pub behaviour: String,
    /// Status of the response; none when not even that was sent.
    pub status: Option<u16>,
    /// Tokens of the messages: their words, times what the behaviour says.
    pub input_tokens: u64,
    /// Those among them that were in the provider's cache.
    pub cached_tokens: u64,
    /// Tokens it has generated so far, whether or not the client has read them: pieces of the answer, times what the
    /// behaviour says.
    pub output_tokens: u64,
    /// What became of the response.
    pub fate: Fate,
    /// When it was over, since 1970, on the wall clock.
    pub ended_unix_ms: Option<u64>,
    /// Whether it goes on the bill: from the first token of an answer on, whatever becomes of the rest.
    pub charged: bool,
}

/// What became of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It is not over yet.
    Running,
    /// Its last byte was handed to the connection. Whether the client has read it only the client knows.
    Finished,
    /// The client hung up before.
    HungUp,
    /// The provider broke it off, as it was told to.
    BrokenOff,
}

impl Books {
    pub(super) fn of(calls: Vec<Entry>) -> Self {
        let mut books = Self::default();
        for entry in &calls {
            books.sums.add(entry);
            if let Some(key) = &entry.idempotency_key {
                books.keys.entry(key.clone()).or_default().add(entry);
            }
        }
        Self { calls, ..books }
    }
}

impl Sums {
    fn add(&mut self, entry: &Entry) {
        self.calls += 1;
        if entry.charged {
            self.charged_calls += 1;
            self.input_tokens = self.input_tokens.saturating_add(entry.input_tokens);
            self.cached_tokens = self.cached_tokens.saturating_add(entry.cached_tokens);
            self.output_tokens = self.output_tokens.saturating_add(entry.output_tokens);
        }
    }
}
