//! Lengths in tokens, word by word.

use std::collections::HashMap;

use weir_models::Tokenizer;

/// Counts the tokens of a text.
pub trait CountTokens: Send + 'static {
    /// Tokens of a text, without special tokens.
    fn count(&self, text: &str) -> usize;

    /// Tokens of a text, special tokens not counted, that the model takes.
    fn limit(&self) -> usize;

    /// Whether this character is always a token of its own, and what stands before and after it is counted by itself.
    fn stands_alone(&self, _character: char) -> bool {
        false
    }
}

impl CountTokens for Tokenizer {
    fn count(&self, text: &str) -> usize {
        Tokenizer::count(self, text)
    }

    fn limit(&self) -> usize {
        self.max_tokens_of_text()
    }

    fn stands_alone(&self, character: char) -> bool {
        Tokenizer::stands_alone(self, character)
    }
}

/// Words that are remembered, at most. With their lengths they take a few MiB.
const MAX_WORDS: usize = 100_000;

/// Longer words are hardly ever seen again.
const MAX_WORD_BYTES: usize = 32;

/// Counts words, each once. The tokens of a text are those of its words: tokenizers of the kind BERT uses cut at white
/// space before anything else. Where they also cut at punctuation, a word is counted without it: there are half as many.
pub(crate) struct WordCounts<T> {
    tokens: T,
    known: HashMap<Box<str>, u32>,
    /// For each character of ASCII, whether it is a token of its own.
    alone: [bool; 128],
}

impl<T: CountTokens> WordCounts<T> {
    /// Nothing is counted yet.
    pub fn new(tokens: T) -> Self {
        let mut alone = [false; 128];
        for (character, alone) in ('\0'..).zip(&mut alone) {
            *alone = tokens.stands_alone(character);
        }
        Self { tokens, known: HashMap::new(), alone }
    }

    /// Tokens of a text as a whole.
    pub fn exactly(&self, text: &str) -> u32 {
        u32::try_from(self.tokens.count(text)).unwrap_or(u32::MAX)
    }

    /// Tokens of a word; at least 1, so that no text is free.
    pub fn count(&mut self, word: &str) -> u32 {
        let mut tokens = 0u32;
        let mut rest = word;
        while !rest.is_empty() {
            let is_alone = |byte: u8| self.alone.get(usize::from(byte)).copied().unwrap_or(false);
            let plain = rest.bytes().position(is_alone).unwrap_or(rest.len());
            let (part, after) = rest.split_at(plain);
            if !part.is_empty() {
                tokens = tokens.saturating_add(self.count_part(part));
            }
            tokens = tokens.saturating_add(u32::from(!after.is_empty()));
            rest = after.get(1..).unwrap_or_default();
        }
        tokens.max(1)
    }

    /// Tokens of a word, or of a part of one.
    fn count_part(&mut self, part: &str) -> u32 {
        if let Some(count) = self.known.get(part) {
            return *count;
        }
        let count = self.exactly(part);
        if part.len() <= MAX_WORD_BYTES {
            if self.known.len() >= MAX_WORDS {
                self.known.clear();
            }
            self.known.insert(part.into(), count);
        }
        count
    }
}
