//! Answers made of the documents' own sentences.
//!
//! Sentences of the best passages are weighed by meaning (cosine with the question), by words (share of the question's
//! content words), by the rank of their passage, and by whether they have the kind of thing the question asks for (a
//! number, a name). Words alone decide which of them are embedded at all: that is what costs time.

use std::collections::HashSet;

use weir_text::{markers, sentences, terms};

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

/// Without a full stop a line must have so many content words to be taken for a sentence: headings have fewer.
const MIN_TERMS_WITHOUT_STOP: usize = 6;

/// Sentences of so many bytes are lists or tables in disguise.
const MAX_SENTENCE_BYTES: usize = 800;

/// A sentence that may answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its passage, by rank from 0.
    passage: usize,
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
            let sentence = passage.hit.text.get(range).unwrap_or_default();
            let stems = stems(sentence);
            // Overlapping chunks have sentences in common.
            let known = |(other, _): &(Candidate, _)| other.text == one_line(sentence);
            if !is_statement(sentence, stems.len()) || found.iter().any(known) {
                continue;
            }
            let rank = 1.0 / (1.0 + at as f64);
            let kind = if kind.is_in(sentence, &question_stems) { 1.0 } else { 0.0 };
            found.push((Candidate { passage: at, text: one_line(sentence), words: 0.0, rank, kind }, stems));
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

/// Whether a sentence says something by itself: no heading, no row of a table, no question.
fn is_statement(sentence: &str, terms: usize) -> bool {
    let ended =
        sentence.trim_end_matches(['"', '”', '\'', '’', ')', ']', '*', '_']).ends_with(['.', '!', ':', ';', '…']);
    let enough = if ended { MIN_TERMS } else { MIN_TERMS_WITHOUT_STOP };
    terms >= enough
        && sentence.len() <= MAX_SENTENCE_BYTES
        && !sentence.starts_with(['#', '|'])
        && !sentence.ends_with('?')
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
    // Best first: whoever reads only the beginning has read what fits best.
    let mut passages: Vec<usize> = Vec::new();
    let mut said = Vec::new();
    for (_, candidate) in scored {
        let known = passages.iter().position(|passage| *passage == candidate.passage);
        let at = known.unwrap_or_else(|| {
            passages.push(candidate.passage);
            passages.len() - 1
        });
        said.push(format!("{} [{}]", candidate.text, at + 1));
    }
    Extract { text: said.join(" "), passages }
}

/// The sentence without the line breaks of its source and without the sign of a list item.
fn one_line(sentence: &str) -> String {
    let line = sentence.split_whitespace().collect::<Vec<_>>().join(" ");
    let item = ["- ", "* ", "+ ", "• ", "> "].iter().find_map(|sign| line.strip_prefix(sign));
    without_footnotes(item.unwrap_or(&line))
}

/// Footnotes of the source look like citations of the answer: `[3]` becomes `(3)`.
fn without_footnotes(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut from = 0;
    for marker in markers(line) {
        out.push_str(line.get(from..marker.at.start).unwrap_or_default());
        let inner = line.get(marker.at.clone()).unwrap_or_default().trim_matches(['[', ']']);
        out.extend(["(", inner, ")"]);
        from = marker.at.end;
    }
    out.push_str(line.get(from..).unwrap_or_default());
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use weir_contracts::{DocumentId, Revision};
    use weir_vectors::Hit;

    use super::*;

    fn passage(text: &str) -> Passage {
        let hit = Hit {
            document: DocumentId::parse("d").unwrap(),
            revision: Revision::from_ordinal(1),
            ordinal: 0,
            start: 0,
            end: 1,
            title: None,
            heading_path: Vec::new(),
            text: text.to_owned(),
            score: 1.0,
        };
        Passage { hit, similarity: None }
    }

    fn texts(question: &str, passages: &[&str]) -> Vec<String> {
        let passages: Vec<_> = passages.iter().map(|text| passage(text)).collect();
        let config = GenerateConfig::default();
        candidates(question, &passages, &config).into_iter().map(|candidate| candidate.text).collect()
    }

    #[test]
    fn headings_rows_and_questions_are_no_answers() {
        let text = "Old Mill Stories\n\n# Mills\n\nWhen was the mill built?\n\n| mill | 1912 | Ulm |\n\nThe mill\nwas built in 1912.";
        assert_eq!(texts("When was the mill built?", &[text]), ["The mill was built in 1912."]);
    }

    #[test]
    fn a_sentence_that_overlapping_passages_share_counts_once_and_words_come_first() {
        let found = texts(
            "Who built the mill?",
            &["It rained all day long. Ann built the mill.", "Ann built the mill. Bob slept."],
        );
        assert_eq!(found, ["Ann built the mill.", "It rained all day long.", "Bob slept."]);
    }

    #[test]
    fn footnotes_of_a_document_are_not_taken_for_citations() {
        let found = texts("When was the mill built?", &["The mill [3] was built in 1912 [see 4][12, 13]."]);
        assert_eq!(found, ["The mill (3) was built in 1912 [see 4](12, 13)."]);
    }

    #[test]
    fn the_best_sentence_comes_first_and_far_worse_ones_not_at_all() {
        let passages = [passage("It rained all day long. Ann built the mill."), passage("Ann built a mill in Ulm.")];
        let config = GenerateConfig::default();
        let candidates = candidates("Who built the mill?", &passages, &config);
        let vectors: Vec<Vec<f32>> = candidates
            .iter()
            .map(|candidate| {
                if candidate.text.contains("mill in") {
                    vec![1.0, 0.0]
                } else if candidate.text.contains("Ann") {
                    vec![0.8, 0.6]
                } else {
                    vec![0.0, 1.0]
                }
            })
            .collect();
        let extract = choose(&candidates, &[1.0, 0.0], &vectors, &config);
        assert_eq!(extract.text, "Ann built a mill in Ulm. [1] Ann built the mill. [2]");
        assert_eq!(extract.passages, [1, 0]);
        assert_eq!(choose(&[], &[1.0, 0.0], &[], &config), Extract::default());
    }
}
