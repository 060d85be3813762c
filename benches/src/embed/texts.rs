//! What is embedded.

use std::fs;
use std::path::Path;

use color_eyre::eyre::{Result, ensure};
use serde::Deserialize;
use weir_models::Embedder;

/// Lengths measured one by one, in tokens, special tokens included.
const LENGTHS: [usize; 4] = [16, 64, 128, 256];
/// Tokens of a measurement at one length.
const TOKENS: usize = 4_096;
/// Tokens of a measurement on mixed lengths.
const MIXED_TOKENS: usize = 16_384;

/// Name of the set that has the lengths of a real corpus.
pub const MIXED: &str = "mixed";

/// Texts that are measured together.
pub struct Set {
    pub name: String,
    /// The longest last: what serves padded batches best.
    pub texts: Vec<String>,
    /// Tokens of each.
    pub lengths: Vec<usize>,
}

impl Set {
    fn new(name: &str, embedder: &Embedder, texts: Vec<String>) -> Result<Self> {
        let tokens = |text: &String| -> Result<usize> { Ok(embedder.tokenizer().encode(text)?.len()) };
        let mut both = texts.into_iter().map(|text| Ok((tokens(&text)?, text))).collect::<Result<Vec<_>>>()?;
        both.sort();
        let (lengths, texts) = both.into_iter().unzip();
        Ok(Self { name: name.to_owned(), texts, lengths })
    }

    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
}

/// Texts of fixed lengths, and of those of the corpus.
pub fn sets(embedder: &Embedder, corpus: &Path) -> Result<Vec<Set>> {
    let corpus = texts(corpus)?;
    let mut sets = Vec::new();
    for length in LENGTHS {
        let set = Set::new(&length.to_string(), embedder, of_length(embedder, &corpus, length))?;
        ensure!(!set.texts.is_empty(), "the corpus has no text of {length} tokens");
        sets.push(set);
    }
    sets.push(Set::new(MIXED, embedder, windows(embedder, &corpus, MIXED_TOKENS))?);
    Ok(sets)
}

/// All texts of the corpus, for devices that embed the others in no time.
pub fn all(embedder: &Embedder, corpus: &Path) -> Result<Set> {
    Set::new("all", embedder, windows(embedder, &texts(corpus)?, usize::MAX))
}

/// The texts of a corpus, one JSON object a line.
fn texts(corpus: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Document {
        text: String,
    }
    let lines = fs::read_to_string(corpus)?;
    lines.lines().take(2_000).map(|line| Ok(serde_json::from_str::<Document>(line)?.text)).collect()
}

/// Texts of exactly so many tokens, cut from the beginnings of the corpus, `TOKENS` in all.
fn of_length(embedder: &Embedder, texts: &[String], length: usize) -> Vec<String> {
    let tokenizer = embedder.tokenizer();
    let words = length.saturating_sub(tokenizer.max_tokens() - tokenizer.max_tokens_of_text());
    let cut = |text: &String| {
        let encoding = tokenizer.raw().encode(text.as_str(), false).ok()?;
        let (_, end) = *encoding.get_offsets().get(words.checked_sub(1)?)?;
        let text = text.get(..end)?;
        (tokenizer.encode(text).ok()?.len() == length).then(|| text.to_owned())
    };
    texts.iter().filter_map(cut).take(TOKENS / length).collect()
}

/// The corpus, about so many tokens of it, cut into pieces that fit the model: full ones and what is left of each document.
fn windows(embedder: &Embedder, texts: &[String], most: usize) -> Vec<String> {
    let tokenizer = embedder.tokenizer();
    let mut total = 0;
    let mut pieces = Vec::new();
    for text in texts {
        let Ok(encoding) = tokenizer.raw().encode(text.as_str(), false) else { continue };
        for window in encoding.get_offsets().chunks(tokenizer.max_tokens_of_text()) {
            let (Some((from, _)), Some((_, to))) = (window.first(), window.last()) else { continue };
            let Some(piece) = text.get(*from..*to) else { continue };
            total += window.len();
            pieces.push(piece.to_owned());
        }
        if total >= most {
            break;
        }
    }
    pieces
}
