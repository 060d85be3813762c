//! BM25 as sparse vectors: the part of the formula that a document and a query know by themselves. Qdrant multiplies
//! with the inverse document frequency (its IDF modifier), which only the collection knows.
//!
//! score(q, d) = Σ idf(t) · tf(t, d) · (k1 + 1) / (tf(t, d) + k1 · (1 − b + b · |d| / avgdl))
//!
//! (Robertson and Zaragoza, *The Probabilistic Relevance Framework: BM25 and Beyond*, 2009, with Lucene's idf.)
//! Words are those of Unicode (UAX #29), lower-cased and NFKC-normalised, without Lucene's English stop words, stemmed
//! by Snowball's English stemmer.

use std::collections::BTreeMap;

use rust_stemmers::{Algorithm, Stemmer};
use unicode_normalization::UnicodeNormalization;
use unicode_segmentation::UnicodeSegmentation;
use weir_contracts::murmur2;

/// Saturation of the term frequency.
pub const K1: f32 = 1.2;
/// How much the length of a chunk counts.
pub const B: f32 = 0.75;
/// Length of an average chunk in terms. A constant, since every chunk of a collection must be weighed alike and the
/// true mean changes with each one: a chunk of 256 word pieces of English prose has about 100 terms after stop words.
pub const AVERAGE_LENGTH: f32 = 100.0;
/// Longest word that is kept, bytes: longer ones are not words.
const LONGEST_WORD: usize = 64;

/// `StopAnalyzer.ENGLISH_STOP_WORDS_SET` of Lucene, sorted.
const STOP_WORDS: [&str; 33] = [
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
];

/// A sparse vector: dimensions rising, no two alike.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sparse {
    /// Ids of the terms.
    pub indices: Vec<u32>,
    /// Their weights.
    pub values: Vec<f32>,
}

impl Sparse {
    /// Whether there is no term.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }
}

/// Turns text into sparse vectors.
pub struct Bm25 {
    stemmer: Stemmer,
}

impl std::fmt::Debug for Bm25 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bm25").finish_non_exhaustive()
    }
}

impl Default for Bm25 {
    fn default() -> Self {
        Self::new()
    }
}

impl Bm25 {
    /// The weights described in the module's documentation.
    #[must_use]
    pub fn new() -> Self {
        Self { stemmer: Stemmer::create(Algorithm::English) }
    }

    /// Weights of the terms of a document made of these parts.
    #[must_use]
    pub fn document(&self, parts: &[&str]) -> Sparse {
        let mut counts = BTreeMap::<u32, f32>::new();
        let mut length = 0.0;
        for part in parts {
            self.terms(part, |id| {
                *counts.entry(id).or_default() += 1.0;
                length += 1.0;
            });
        }
        let norm = K1 * (1.0 - B + B * length / AVERAGE_LENGTH);
        let (indices, values) = counts.into_iter().map(|(id, tf)| (id, tf * (K1 + 1.0) / (tf + norm))).unzip();
        Sparse { indices, values }
    }

    /// A query: each of its terms once, with weight 1.
    #[must_use]
    pub fn query(&self, text: &str) -> Sparse {
        let mut terms = BTreeMap::<u32, f32>::new();
        self.terms(text, |id| {
            terms.insert(id, 1.0);
        });
        let (indices, values) = terms.into_iter().unzip();
        Sparse { indices, values }
    }

    fn terms(&self, text: &str, mut term: impl FnMut(u32)) {
        let normal: String = text.nfkc().flat_map(char::to_lowercase).collect();
        for word in normal.unicode_words() {
            let word = word.strip_suffix("'s").or_else(|| word.strip_suffix("’s")).unwrap_or(word);
            if word.len() > LONGEST_WORD || STOP_WORDS.binary_search(&word).is_ok() {
                continue;
            }
            term(term_id(&self.stemmer.stem(word)));
        }
    }
}

/// Id of a term: a hash that never changes, since it lies in stored vectors. Among 100,000 terms about one pair meets.
fn term_id(term: &str) -> u32 {
    murmur2(term.as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn inflections_and_case_meet_in_one_term_and_stop_words_vanish() {
        let bm25 = Bm25::new();
        assert_eq!(bm25.query("The Connections"), bm25.query("connection"));
        assert_eq!(bm25.query("company's"), bm25.query("company"));
        assert!(bm25.query("to be or not to be").indices.is_empty());
        assert!(STOP_WORDS.is_sorted());
    }

    #[test]
    fn a_word_of_a_query_counts_once() {
        let query = Bm25::new().query("fish fish fish");
        assert_eq!(query.values, vec![1.0]);
    }

    #[test]
    fn repetition_saturates_and_length_dilutes() {
        let bm25 = Bm25::new();
        let one = bm25.document(&["fish"]).values[0];
        let ten = bm25.document(&[&"fish ".repeat(10)]).values[0];
        let diluted = bm25.document(&["fish", &"word ".repeat(400)]);
        let fish = diluted.indices.iter().position(|id| *id == bm25.query("fish").indices[0]).unwrap();
        assert!(one < ten && ten < one * 3.0 && ten < K1 + 1.0);
        assert!(diluted.values[fish] < one);
    }

    #[test]
    fn term_ids_never_change() {
        // They lie in stored collections: another hash would make those unsearchable.
        assert_eq!(Bm25::new().query("retrieval").indices, vec![term_id("retriev")]);
        assert_eq!(term_id("retriev"), 648_823_589);
    }

    #[test]
    fn vectors_are_sorted_without_duplicates() {
        let vector = Bm25::new().document(&["one two three four two one", "five six one"]);
        assert!(vector.indices.is_sorted_by(|a, b| a < b));
        assert_eq!(vector.indices.len(), 6);
    }
}
