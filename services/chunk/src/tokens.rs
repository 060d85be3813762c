//! Lengths in tokens, word by word.

use std::collections::HashMap;

use weir_models::Tokenizer;

/// Counts the tokens of a text.
pub trait CountTokens: Send + 'static {
    /// Tokens of a text, without special tokens.
    fn count(&self, text: &str) -> usize;

    /// Tokens of a text, special tokens not counted, that the model takes.
    fn limit(&self) -> usize;
}

impl CountTokens for Tokenizer {
    fn count(&self, text: &str) -> usize {
        Tokenizer::count(self, text)
    }

    fn limit(&self) -> usize {
        self.max_tokens_of_text()
    }
}

/// Words that are remembered, at most. With their lengths they take a few MiB.
const MAX_WORDS: usize = 100_000;

/// Longer words are hardly ever seen again.
const MAX_WORD_BYTES: usize = 32;

/// Counts words, each once. The tokens of a text are those of its words: tokenizers of the kind BERT uses cut at white
/// space before anything else.
pub(crate) struct WordCounts<T> {
    tokens: T,
    known: HashMap<Box<str>, u32>,
}

impl<T: CountTokens> WordCounts<T> {
    /// Nothing is counted yet.
    pub fn new(tokens: T) -> Self {
        Self { tokens, known: HashMap::new() }
    }

    /// Tokens of a text as a whole.
    pub fn exactly(&self, text: &str) -> u32 {
        u32::try_from(self.tokens.count(text)).unwrap_or(u32::MAX)
    }

    /// Tokens of a word; at least 1, so that no text is free.
    pub fn count(&mut self, word: &str) -> u32 {
        if let Some(count) = self.known.get(word) {
            return *count;
        }
        let count = u32::try_from(self.tokens.count(word)).unwrap_or(u32::MAX).max(1);
        if word.len() <= MAX_WORD_BYTES {
            if self.known.len() >= MAX_WORDS {
                self.known.clear();
            }
            self.known.insert(word.into(), count);
        }
        count
    }
}
