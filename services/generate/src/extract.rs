//! Answers made of the documents' own sentences.
//!
//! Sentences of the best passages are weighed by meaning (cosine with the question), by words (share of the question's
//! content words), by the rank of their passage, and by whether they have the kind of thing the question asks for (a
//! number, a name). Words alone decide which of them are embedded at all: that is what costs time.

use std::collections::HashSet;
use std::ops::Range;

use weir_text::{sentences, terms};

use crate::Passage;
use crate::config::GenerateConfig;
use crate::meaning::cosine;
use crate::relevance::{QuestionWords, stems};

const MEANING: f64 = 0.6;
const WORDS: f64 = 0.25;
const RANK: f64 = 0.15;
const KIND: f64 = 0.08;

/// A sentence far worse than the best adds noise.
const WORST_OF_BEST: f64 = 0.55;

/// Shorter ones say nothing by themselves.
const MIN_TERMS: usize = 2;

/// Sentences of so many bytes are lists or tables in disguise.
const MAX_SENTENCE_BYTES: usize = 800;

/// A sentence that may answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its passage, by rank from 0.
    passage: usize,
    range: Range<usize>,
    /// The sentence on one line.
    pub text: String,
    words: f64,
    rank: f64,
    kind: f64,
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Extract {
    /// The sentences, each followed by its marker.
    pub text: String,
    /// Passages by rank from 0; the first is marker 1, and so on.
    pub passages: Vec<usize>,
}

/// What kind of thing a question asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    Name,
    Any,
}

impl Kind {
    fn of(question: &str) -> Self {
        let question = question.to_lowercase();
        let number =
            ["how many", "how much", "how long", "how old", "how far", "how often", "when ", "year", "percent"];
        let name = ["who ", "whom ", "whose ", "where ", "which ", "what is the name", "what was the name"];
        if number.iter().any(|words| question.contains(words)) {
            Self::Number
        } else if name.iter().any(|words| question.contains(words)) {
            Self::Name
        } else {
            Self::Any
        }
    }

    /// Whether a sentence has such a thing that the question does not name itself.
    fn is_in(self, sentence: &str, question: &HashSet<String>) -> bool {
        let new = |wanted: fn(&weir_text::Term) -> bool| {
            terms(sentence).iter().any(|term| wanted(term) && !question.contains(&term.stem))
        };
        match self {
            Self::Number => new(|term| term.number),
            Self::Name => new(|term| term.name),
            Self::Any => false,
        }
    }
}

/// The sentences worth embedding, likeliest first.
#[must_use]
#[allow(clippy::cast_precision_loss)]
pub fn candidates(question: &str, passages: &[Passage], config: &GenerateConfig) -> Vec<Candidate> {
    let kind = Kind::of(question);
    let question_stems = stems(question);
    let mut found: Vec<(Candidate, HashSet<String>)> = Vec::new();
    for (at, passage) in passages.iter().enumerate() {
        for range in sentences(&passage.hit.text) {
            let sentence = passage.hit.text.get(range.clone()).unwrap_or_default();
            let stems = stems(sentence);
            // Overlapping chunks have sentences in common.
            let known = |(other, _): &(Candidate, _)| other.text == one_line(sentence);
            let usable = stems.len() >= MIN_TERMS
                && sentence.len() <= MAX_SENTENCE_BYTES
                && !sentence.starts_with(['#', '|'])
                && !sentence.ends_with('?');
            if !usable || found.iter().any(known) {
                continue;
            }
            let rank = 1.0 / (1.0 + at as f64);
            let kind = if kind.is_in(sentence, &question_stems) { 1.0 } else { 0.0 };
            found.push((Candidate { passage: at, range, text: one_line(sentence), words: 0.0, rank, kind }, stems));
        }
    }
    let texts: Vec<_> = found.iter().map(|(_, stems)| stems.clone()).collect();
    let words = QuestionWords::among(question, &texts);
    let mut candidates: Vec<Candidate> =
        found.into_iter().map(|(candidate, stems)| Candidate { words: words.share_in(&stems), ..candidate }).collect();
    candidates.sort_by(|a, b| prior(b).total_cmp(&prior(a)));
    candidates.truncate(config.extract_candidates);
    candidates
}

/// What is known without embedding.
fn prior(candidate: &Candidate) -> f64 {
    WORDS * candidate.words + RANK * candidate.rank + KIND * candidate.kind
}

/// The best sentences. `vectors` are the candidates', in their order.
#[must_use]
pub fn choose(candidates: &[Candidate], question: &[f32], vectors: &[Vec<f32>], config: &GenerateConfig) -> Extract {
    let mut scored: Vec<(f64, &Candidate)> = candidates
        .iter()
        .zip(vectors)
        .map(|(candidate, vector)| (MEANING * cosine(question, vector).max(0.0) + prior(candidate), candidate))
        .collect();
    scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let Some((best, _)) = scored.first().copied() else { return Extract::default() };
    scored.retain(|(score, _)| *score >= WORST_OF_BEST * best);
    scored.truncate(config.extract_sentences);
    // Passages in the order of their best sentence, sentences of a passage as they stand there.
    let mut order: Vec<usize> = Vec::new();
    for (_, candidate) in &scored {
        if !order.contains(&candidate.passage) {
            order.push(candidate.passage);
        }
    }
    let mut said = Vec::new();
    for (marker, passage) in (1..).zip(&order) {
        let mut of_passage: Vec<&Candidate> =
            scored.iter().map(|(_, candidate)| *candidate).filter(|candidate| candidate.passage == *passage).collect();
        of_passage.sort_by_key(|candidate| candidate.range.start);
        said.extend(of_passage.into_iter().map(|candidate| format!("{} [{marker}]", candidate.text)));
    }
    Extract { text: said.join(" "), passages: order }
}

/// The sentence without the line breaks of its source and without the sign of a list item.
fn one_line(sentence: &str) -> String {
    let line = sentence.split_whitespace().collect::<Vec<_>>().join(" ");
    let item = ["- ", "* ", "+ ", "• ", "> "].iter().find_map(|sign| line.strip_prefix(sign));
    item.map_or_else(|| line.clone(), str::to_owned)
}
