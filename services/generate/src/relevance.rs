//! How many of a question's words a text has, and whether anything that was found is about the question at all.

use std::collections::{HashMap, HashSet};

use weir_text::{Term, terms};

use crate::Passage;
use crate::config::GenerateConfig;

/// The content words of a question, weighted by how rare they are among some texts.
#[derive(Debug)]
pub(crate) struct QuestionWords {
    weights: HashMap<String, f64>,
    total: f64,
}

impl QuestionWords {
    /// Weights by these texts, each given by its stems: ln(1 + n / (1 + n with the word)); numbers and names count
    /// half as much again.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn among(question: &str, texts: &[HashSet<String>]) -> Self {
        let weight = |term: &Term| {
            let with = texts.iter().filter(|stems| stems.contains(&term.stem)).count();
            let rarity = (1.0 + texts.len() as f64 / (1.0 + with as f64)).ln();
            if term.number || term.name { rarity * 1.5 } else { rarity }
        };
        let weights: HashMap<String, f64> =
            terms(question).iter().map(|term| (term.stem.clone(), weight(term))).collect();
        let total = weights.values().sum();
        Self { weights, total }
    }

    /// Share of the question's words, by weight, that are among these, 0 to 1.
    pub(crate) fn share_in(&self, stems: &HashSet<String>) -> f64 {
        let found: f64 = self.weights.iter().filter(|(stem, _)| stems.contains(*stem)).map(|(_, weight)| weight).sum();
        if self.total > 0.0 { found / self.total } else { 0.0 }
    }
}

/// The stems of a text.
pub(crate) fn stems(text: &str) -> HashSet<String> {
    terms(text).into_iter().map(|term| term.stem).collect()
}

/// The stems of a passage with its title and headings.
pub(crate) fn passage_stems(passage: &Passage) -> HashSet<String> {
    let mut all = stems(&passage.hit.text);
    all.extend(stems(passage.hit.title.as_deref().unwrap_or_default()));
    all.extend(passage.hit.heading_path.iter().flat_map(|heading| stems(heading)));
    all
}

/// Whether any passage is about the question: near it in meaning, or with enough of its words.
#[must_use]
pub fn any_relevant(question: &str, passages: &[Passage], config: &GenerateConfig) -> bool {
    let near = |passage: &Passage| passage.similarity.is_some_and(|similarity| similarity >= config.min_similarity);
    if passages.iter().any(near) {
        return true;
    }
    let texts: Vec<_> = passages.iter().map(passage_stems).collect();
    let words = QuestionWords::among(question, &texts);
    texts.iter().any(|stems| words.share_in(stems) >= config.min_word_share)
}
