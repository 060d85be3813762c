//! Answers that were given before. An answer stands under what was asked; what it rested on decides whether it is still the
//! answer, or only one that may be given, marked, when there is no better one.

use serde::{Deserialize, Serialize};
use weir_contracts::{Answer, Citation, DocumentId, Revision};

use crate::Passage;

/// An answer and what it rested on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cached {
    /// The answer.
    pub(crate) answer: Answer,
    /// What it rested on.
    pub(crate) basis: Basis,
}

/// What an answer rests on: while all of it is the same, so would the answer be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Basis {
    /// The passages that were found, in order.
    passages: Vec<(DocumentId, Revision, i32)>,
    /// Fingerprint of the prompt.
    prompt: String,
    /// The models that are asked, in order, and their settings.
    models: String,
}

impl Basis {
    pub(crate) fn of(passages: &[Passage], prompt: String, models: String) -> Self {
        let place = |passage: &Passage| (passage.hit.document.clone(), passage.hit.revision, passage.hit.ordinal);
        Self { passages: passages.iter().map(place).collect(), prompt, models }
    }

    /// The documents it rests on, each once.
    pub(crate) fn documents(&self) -> Vec<&DocumentId> {
        let mut documents: Vec<_> = self.passages.iter().map(|(document, ..)| document).collect();
        documents.sort();
        documents.dedup();
        documents
    }

    /// The same in a few characters.
    pub(crate) fn fingerprint(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        hex::encode(weir_contracts::length_prefixed_hash(&[&text]))
    }
}

impl Cached {
    /// Whether this answer, to an equivalent question, would do for one that rests on this: the same prompt and models, and
    /// every passage that it cites was found now, too, unchanged.
    pub(crate) fn answers_too(&self, basis: &Basis) -> bool {
        let found = |citation: &Citation| {
            let at = (&citation.document, citation.revision, citation.ordinal);
            basis.passages.iter().any(|(document, revision, ordinal)| (document, *revision, *ordinal) == at)
        };
        let citations = &self.answer.citations;
        (&self.basis.prompt, &self.basis.models) == (&basis.prompt, &basis.models)
            && !citations.is_empty()
            && citations.iter().all(found)
    }

    /// How old the answer is, milliseconds.
    pub(crate) fn age(&self, now: i64) -> i64 {
        now.saturating_sub(self.answer.at).max(0)
    }
}

/// A question as it is compared: words count, not the space between them.
pub(crate) fn normalised(question: &str) -> String {
    question.split_whitespace().collect::<Vec<_>>().join(" ")
}
