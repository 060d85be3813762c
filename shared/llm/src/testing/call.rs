//! A call under way, and what it means for the books.

use super::answer::Answer;
use super::books::{Entry, Fate};
use super::state::{Shared, Task};

/// A call until its response is over. One that is dropped before was hung up on: nobody else ends it.
pub(super) struct Call {
    shared: Shared,
    number: usize,
    /// An answer that was given and charged before.
    repeat: bool,
    over: bool,
}

impl Call {
    pub(super) fn new(shared: Shared, number: usize, task: &Task) -> Self {
        Self { shared, number, repeat: matches!(task, Task::Repeat(_)), over: false }
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// What the books say so far; nothing once they were forgotten.
    pub(super) fn entry(&self) -> Option<Entry> {
        self.shared.lock().entry(self.number).cloned()
    }

    /// The head of its response.
    pub(super) fn respond(&self, status: u16) {
        self.note(|entry| entry.status = Some(status));
    }

    /// It is to give this answer.
    pub(super) fn answer(&self, answer: &Answer) {
        self.note(|entry| {
            entry.input_tokens = answer.input_tokens;
            entry.cached_tokens = answer.cached_tokens;
        });
    }

    /// So many tokens of the answer are there: it is charged from the first one on, or from the end of an answer that
    /// has none.
    pub(super) fn generate(&self, tokens: u64) {
        if !self.repeat {
            self.note(|entry| {
                entry.output_tokens = entry.output_tokens.saturating_add(tokens);
                entry.charged = true;
            });
        }
    }

    /// It is over; a repeat of its key gets this answer.
    pub(super) fn end(&mut self, fate: Fate, answer: Option<Answer>) {
        if !std::mem::replace(&mut self.over, true) {
            self.shared.lock().end(self.number, fate, answer);
        }
    }

    fn note(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.shared.lock().entry(self.number) {
            change(entry);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Fate::HungUp, None);
    }
}
