//! The text of an answer from the pieces it is streamed in, for whoever reads `answer-tokens`: live, late, or again after the
//! connection was lost.
//!
//! The highest attempt counts, and starting over is said. Only the record in `answers` ends a stream.

use std::collections::BTreeMap;

use crate::{Answer, AnswerToken};

/// What to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// More text.
    Text(String),
    /// What was shown so far counts no more; the text begins anew.
    StartOver,
}

/// The text of an answer while it arrives. Pieces may come late, twice or in any order.
#[derive(Debug, Default)]
pub struct TokenStream {
    attempt: i32,
    next: i32,
    shown: String,
    early: BTreeMap<i32, String>,
}

impl TokenStream {
    /// Takes a piece; what becomes showable by it. Repeated and outdated pieces show nothing.
    pub fn push(&mut self, token: &AnswerToken) -> Vec<Shown> {
        let mut out = Vec::new();
        if token.attempt < self.attempt || (token.attempt == self.attempt && token.sequence < self.next) {
            return out;
        }
        if token.attempt > self.attempt {
            out.extend(self.start_over(token.attempt));
        }
        self.early.insert(token.sequence, token.delta.clone());
        while let Some(delta) = self.early.remove(&self.next) {
            self.next += 1;
            self.shown.push_str(&delta);
            out.push(Shown::Text(delta));
        }
        out
    }

    /// Takes the answer, which ends the stream: what has still to be shown so that exactly its text stands there.
    pub fn finish(&mut self, answer: &Answer) -> Vec<Shown> {
        if let Some(rest) = answer.text.strip_prefix(self.shown.as_str())
            && (self.shown.is_empty() || answer.attempt == self.attempt)
        {
            return if rest.is_empty() { Vec::new() } else { vec![Shown::Text(rest.to_owned())] };
        }
        let mut out: Vec<_> = self.start_over(answer.attempt).into_iter().collect();
        out.push(Shown::Text(answer.text.clone()));
        out
    }

    fn start_over(&mut self, attempt: i32) -> Option<Shown> {
        let visible = !self.shown.is_empty();
        *self = Self { attempt, ..Self::default() };
        visible.then_some(Shown::StartOver)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use super::*;
    use crate::{AnswerStatus, Provenance, RequestId, TenantId};

    fn token(attempt: i32, sequence: i32, delta: &str) -> AnswerToken {
        AnswerToken {
            request_id: RequestId::parse("r").unwrap(),
            tenant: TenantId::parse("acme").unwrap(),
            attempt,
            sequence,
            delta: delta.into(),
        }
    }

    fn answer(attempt: i32, text: &str) -> Answer {
        Answer {
            request_id: RequestId::parse("r").unwrap(),
            tenant: TenantId::parse("acme").unwrap(),
            status: AnswerStatus::Complete,
            provenance: Provenance::Fresh,
            text: text.into(),
            citations: Vec::new(),
            reason: None,
            provider: String::new(),
            model: String::new(),
            prompt_version: String::new(),
            input_tokens: 0,
            output_tokens: 0,
            usage_estimated: false,
            cost_usd: 0.0,
            attempt,
            attempts: attempt,
            age_ms: None,
            answered_with: None,
            retry_after_ms: None,
            text_hash: String::new(),
            timings: BTreeMap::new(),
            question: String::new(),
            asked_at: 0,
            at: 0,
        }
    }

    /// What stands on the screen after these.
    fn screen(steps: impl IntoIterator<Item = Vec<Shown>>) -> String {
        steps.into_iter().flatten().fold(String::new(), |screen, shown| match shown {
            Shown::Text(text) => screen + &text,
            Shown::StartOver => String::new(),
        })
    }

    #[test]
    fn a_higher_attempt_starts_over_and_a_lower_one_is_ignored() {
        let mut stream = TokenStream::default();
        let steps = [
            stream.push(&token(1, 0, "wrong ")),
            stream.push(&token(2, 0, "right")),
            stream.push(&token(1, 1, "way")),
            stream.finish(&answer(2, "right")),
        ];
        assert_eq!(screen(steps), "right");
    }

    #[test]
    fn pieces_are_shown_once_and_in_order() {
        let mut stream = TokenStream::default();
        let steps = [
            stream.push(&token(1, 0, "a")),
            stream.push(&token(1, 2, "c")),
            stream.push(&token(1, 0, "a")),
            stream.push(&token(1, 1, "b")),
        ];
        assert_eq!(screen(steps), "abc");
    }

    #[test]
    fn the_answer_completes_what_was_not_streamed() {
        let mut stream = TokenStream::default();
        let steps = [stream.push(&token(1, 0, "Forty-")), stream.finish(&answer(1, "Forty-two."))];
        assert_eq!(screen(steps), "Forty-two.");
    }

    #[test]
    fn an_answer_of_another_attempt_replaces_what_was_streamed() {
        let mut stream = TokenStream::default();
        let streamed = stream.push(&token(1, 0, "Forty-"));
        let end = stream.finish(&answer(2, "Forty-two."));
        assert_eq!(end.first(), Some(&Shown::StartOver), "the same beginning does not make it the same attempt");
        assert_eq!(screen([streamed, end]), "Forty-two.");
    }

    #[test]
    fn an_answer_that_was_not_streamed_is_shown_whole() {
        assert_eq!(screen([TokenStream::default().finish(&answer(0, "No."))]), "No.");
    }
}
