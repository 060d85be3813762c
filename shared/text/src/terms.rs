//! Content words.

use std::cell::OnceCell;

use rust_stemmers::{Algorithm, Stemmer};
use unicode_normalization::UnicodeNormalization;
use unicode_segmentation::UnicodeSegmentation;

/// Words that carry no content of their own in questions and answers, lower case, sorted.
const STOP_WORDS: [&str; 157] = [
    "a", "about", "above", "after", "again", "all", "along", "already", "also", "although", "always", "am", "among",
    "an", "and", "another", "any", "are", "around", "as", "at", "away", "be", "became", "because", "become", "been",
    "before", "being", "between", "both", "but", "by", "called", "can", "cannot", "could", "did", "do", "does",
    "doing", "done", "down", "due", "during", "each", "either", "else", "even", "ever", "every", "few", "for", "from",
    "further", "get", "give", "given", "had", "has", "have", "having", "he", "her", "here", "hers", "him", "his",
    "how", "however", "i", "if", "in", "into", "is", "it", "its", "itself", "just", "least", "less", "like", "made",
    "make", "many", "may", "me", "might", "more", "most", "much", "must", "my", "name", "near", "no", "nor", "not",
    "now", "of", "off", "often", "on", "once", "one", "only", "onto", "or", "other", "our", "out", "over", "own",
    "same", "she", "should", "since", "so", "some", "such", "than", "that", "the", "their", "them", "then", "there",
    "these", "they", "this", "those", "through", "to", "too", "under", "until", "up", "upon", "us", "very", "was",
    "we", "were", "what", "when", "where", "whether", "which", "while", "who", "whom", "whose", "why", "will", "with",
    "would", "you",
];

/// Words that turn a statement round, sorted.
const NEGATIONS: [&str; 12] =
    ["cannot", "hardly", "neither", "never", "no", "nobody", "none", "nor", "not", "nothing", "nowhere", "without"];

/// A content word.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Term {
    /// Its stem; a number without the commas between its digits.
    pub stem: String,
    /// Whether it contains a digit.
    pub number: bool,
    /// Whether it is written with a capital and does not begin the text.
    pub name: bool,
    /// Length of the word in characters.
    pub length: usize,
}

/// The content words of an English text in order: Unicode words, normalised, lower case, without stop words, stemmed.
/// Repetitions stay.
#[must_use]
pub fn terms(text: &str) -> Vec<Term> {
    let normal: String = text.nfkc().collect();
    normal.unicode_words().enumerate().filter_map(|(at, word)| term(at, word)).collect()
}

thread_local! {
    static STEMMER: OnceCell<Stemmer> = const { OnceCell::new() };
}

fn term(at: usize, word: &str) -> Option<Term> {
    let lower = word.to_lowercase();
    let lower = lower.strip_suffix("'s").or_else(|| lower.strip_suffix("’s")).unwrap_or(&lower);
    if STOP_WORDS.binary_search(&lower).is_ok() || contracted_stop_word(lower) {
        return None;
    }
    let number = lower.bytes().any(|byte| byte.is_ascii_digit());
    let stem = if number {
        lower.replace(',', "")
    } else {
        STEMMER.with(|stemmer| stemmer.get_or_init(|| Stemmer::create(Algorithm::English)).stem(lower).into_owned())
    };
    let name = at > 0 && word.starts_with(|c: char| c.is_uppercase());
    Some(Term { stem, number, name, length: lower.chars().count() })
}

/// don't, isn't, we're …
fn contracted_stop_word(word: &str) -> bool {
    let Some((stem, _)) = word.split_once(['\'', '’']) else { return false };
    let stem = stem.strip_suffix('n').unwrap_or(stem);
    STOP_WORDS.binary_search(&stem).is_ok() || ["ca", "wo"].contains(&stem)
}

/// Whether a sentence is negated.
#[must_use]
pub fn has_negation(sentence: &str) -> bool {
    sentence.unicode_words().any(|word| {
        let word = word.to_lowercase();
        NEGATIONS.binary_search(&word.as_str()).is_ok() || word.ends_with("n't") || word.ends_with("n’t")
    })
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn stems(text: &str) -> Vec<String> {
        terms(text).into_iter().map(|term| term.stem).collect()
    }

    #[test]
    fn content_is_what_is_left_without_stop_words() {
        assert!(STOP_WORDS.is_sorted() && NEGATIONS.is_sorted());
        assert_eq!(
            stems("How many points did the Panthers' defense surrender?"),
            ["point", "panther", "defens", "surrend"]
        );
        assert_eq!(stems("It isn't what they've don’t"), Vec::<String>::new());
        assert_eq!(stems("Ann's eﬀorts"), stems("Ann effort"));
    }

    #[test]
    fn numbers_are_the_same_with_and_without_commas() {
        let terms = terms("1,912.5 mills");
        assert_eq!(terms[0].stem, "1912.5");
        assert!(terms[0].number && !terms[1].number);
    }

    #[test]
    fn a_capital_at_the_beginning_makes_no_name() {
        let terms = terms("Mills stand in Ulm");
        assert_eq!(terms.iter().map(|term| term.name).collect::<Vec<_>>(), [false, false, true]);
    }

    #[test]
    fn negations_are_seen() {
        assert!(has_negation("It can't be.") && has_negation("He did NOT go") && has_negation("without it"));
        assert!(!has_negation("A knot is noted."));
    }
}
