//! Texts to tokens.

use std::fmt;
use std::sync::Arc;

use tokenizers::Model;
use tokenizers::models::ModelWrapper;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

use crate::manifest::TOKENIZER;
use crate::{ModelError, ModelFiles};

/// The tokenizer of a model. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    /// Special tokens before and after a text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    max_tokens: usize,
    bert: Option<Bert>,
}

/// What is known of a tokenizer of the kind BERT uses: it takes words at white space and at punctuation, each sign of
/// which is a word of its own, and cuts every word into pieces by itself.
#[derive(Clone)]
struct Bert {
    lowercase: bool,
    /// Characters of tokens that are looked for before anything else, such as `[SEP]`.
    reserved: String,
    /// Whether a plain word may contain such a token.
    plain_reserved: bool,
}

impl Bert {
    fn of(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        let Some(NormalizerWrapper::BertNormalizer(normalizer)) = tokenizer.get_normalizer() else { return None };
        let Some(PreTokenizerWrapper::BertPreTokenizer(_)) = tokenizer.get_pre_tokenizer() else { return None };
        let ModelWrapper::WordPiece(_) = tokenizer.get_model() else { return None };
        let added = tokenizer.get_added_tokens_decoder();
        Some(Self {
            lowercase: normalizer.lowercase,
            reserved: added.values().map(|token| token.content.as_str()).collect(),
            plain_reserved: added.values().any(|token| is_plain(&token.content)),
        })
    }
}

/// Whether a text is one word and nothing but ASCII, so that there is nothing to normalize in it but its case.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("max_tokens", &self.max_tokens).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads the tokenizer of a model. What its file says of truncation and padding is left out: texts are cut to
    /// what the model takes, and never padded.
    ///
    /// # Errors
    /// When the file can't be read or is not a tokenizer.
    pub fn load(files: &ModelFiles) -> Result<Self, ModelError> {
        let (mut inner, path) = match files.dir() {
            None => (words()?, TOKENIZER.into()),
            Some(dir) => {
                let path = dir.join(TOKENIZER);
                let inner =
                    tokenizers::Tokenizer::from_file(&path).map_err(|error| ModelError::invalid(&path, error))?;
                (inner, path)
            }
        };
        let invalid = |error: tokenizers::Error| ModelError::invalid(&path, error);
        inner.with_truncation(None).map_err(invalid)?;
        inner.with_padding(None);
        // The special tokens are what an empty text becomes: the first before the text, the rest after it.
        let special = inner.encode_fast("", true).map_err(invalid)?;
        let (prefix, suffix) = special.get_ids().split_at(special.len().min(1));
        let (prefix, suffix) = (prefix.to_vec(), suffix.to_vec());
        if files.max_tokens() <= special.len() {
            return Err(ModelError::invalid(&path, "the longest text it allows has no room for any word"));
        }
        let bert = Bert::of(&inner);
        Ok(Self { inner: Arc::new(inner), prefix, suffix, max_tokens: files.max_tokens(), bert })
    }

    /// Length of a text in tokens, without special tokens and without a limit. A text that can't be tokenized counts
    /// as one token for each of its bytes.
    #[must_use]
    pub fn count(&self, text: &str) -> usize {
        let plain = self.bert.as_ref().filter(|bert| !bert.plain_reserved && is_plain(text));
        if let Some(bert) = plain {
            let pieces = match bert.lowercase {
                true => self.inner.get_model().tokenize(&text.to_ascii_lowercase()),
                false => self.inner.get_model().tokenize(text),
            };
            return pieces.map_or(text.len(), |pieces| pieces.len());
        }
        self.inner.encode_fast(text, false).map_or(text.len(), |encoding| encoding.len())
    }

    /// Whether this character is always a token of its own, and what stands before and after it is counted by itself.
    #[must_use]
    pub fn stands_alone(&self, character: char) -> bool {
        let bert = self.bert.as_ref();
        character.is_ascii_punctuation() && bert.is_some_and(|bert| !bert.reserved.contains(character))
    }

    /// What the model is given for a text: special tokens included, at most [`Tokenizer::max_tokens`].
    ///
    /// # Errors
    /// When the tokenizer has no token for a part of the text, not even an unknown one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| ModelError::Tokenize { bytes: text.len(), reason: error.to_string() })?;
        let room = self.max_tokens_of_text();
        let mut ids = Vec::with_capacity(encoding.len().min(room) + self.prefix.len() + self.suffix.len());
        ids.extend_from_slice(&self.prefix);
        ids.extend(encoding.get_ids().iter().take(room));
        ids.extend_from_slice(&self.suffix);
        Ok(ids)
    }

    /// Tokens of a text that the model takes, special tokens included.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Tokens of a text that the model takes, special tokens not included: a chunk of that length fits exactly.
    #[must_use]
    pub fn max_tokens_of_text(&self) -> usize {
        self.max_tokens.saturating_sub(self.prefix.len() + self.suffix.len())
    }

    /// The tokenizer itself, without truncation and padding, for libraries that take one.
    #[must_use]
    pub fn raw(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }
}

/// The tokenizer of the test model: whatever stands between blanks is a token.
fn words() -> Result<tokenizers::Tokenizer, ModelError> {
    let invalid = |error: tokenizers::Error| ModelError::invalid(TOKENIZER.as_ref(), error);
    let unknown = "[UNK]".to_owned();
    let model = WordLevel::builder()
        .vocab([(unknown.clone(), 0)].into_iter().collect())
        .unk_token(unknown)
        .build()
        .map_err(invalid)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(WhitespaceSplit));
    Ok(tokenizer)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::AddedToken;
    use tokenizers::models::wordpiece::WordPiece;
    use tokenizers::normalizers::bert::BertNormalizer;
    use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

    use super::*;

    #[test]
    fn the_test_tokenizer_counts_words_and_cuts_at_the_limit() {
        let tokenizer = Tokenizer::load(&ModelFiles::test()).unwrap();
        assert_eq!(tokenizer.count("one two\tthree\n"), 3);
        assert_eq!(tokenizer.count(""), 0);
        assert_eq!(tokenizer.encode(&"word ".repeat(1000)).unwrap().len(), 256);
        let encoding = tokenizer.raw().encode("zwei Wörter", false).unwrap();
        assert_eq!(encoding.get_offsets(), [(0, 4), (5, 12)]);
        assert!(!tokenizer.stands_alone(','));
    }

    /// A tokenizer of BERT's kind that knows few words, so that many are cut or unknown.
    fn bert(lowercase: bool, added: &str) -> Tokenizer {
        let pieces = ["[UNK]", "a", "b", "ab", "abc", "##a", "##b", "##bc", "##1", "1", ",", "-", "(", ".", "é", "##é"];
        let mut ids = 0u32..;
        let vocabulary = pieces.map(|piece| (piece.to_owned(), ids.next().unwrap()));
        let model = WordPiece::builder().vocab(vocabulary).unk_token("[UNK]".into()).build().unwrap();
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_normalizer(Some(BertNormalizer::new(true, true, None, lowercase))).unwrap();
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        inner.add_special_tokens([AddedToken::from(added, true)]).unwrap();
        let bert = Bert::of(&inner);
        assert!(bert.is_some());
        Tokenizer { inner: Arc::new(inner), prefix: Vec::new(), suffix: Vec::new(), max_tokens: 256, bert }
    }

    proptest! {
        #[test]
        fn a_text_is_as_long_as_what_stands_between_its_punctuation(
            text in "[abcAB1é,.()+-]{0,12}(\\[SEP\\])?[abcAB1é\u{301},.()\\[\\] -]{0,12}",
            lowercase: bool,
            added in prop::sample::select(vec!["[SEP]", "ab", "a-b"]),
        ) {
            let tokenizer = bert(lowercase, added);
            let whole = tokenizer.raw().encode_fast(text.as_str(), false).unwrap().len();
            let alone = text.matches(|character| tokenizer.stands_alone(character)).count();
            let between = text.split(|character| tokenizer.stands_alone(character));
            prop_assert_eq!(whole, alone + between.map(|part| tokenizer.count(part)).sum::<usize>());
            prop_assert_eq!(whole, tokenizer.count(&text));
        }
    }
}
