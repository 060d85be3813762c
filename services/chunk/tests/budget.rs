//! The budget in the tokens of the real model: what the chunker counted word by word is what the model is given.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::Path;

use weir_chunk::Splitter;
use weir_models::{ModelConfig, ModelError, Tokenizer, prepare};

/// The tokenizer, unless the model is not to be had on this machine.
async fn tokenizer() -> Option<Tokenizer> {
    match prepare(&ModelConfig::default()).await {
        Ok(files) => Some(Tokenizer::load(&files).unwrap()),
        Err(error @ ModelError::Unobtainable { .. }) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn texts() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let pages = ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/clients.md", "docs/configuration.md"];
    let mut texts: Vec<String> =
        pages.iter().map(|page| std::fs::read_to_string(root.join(page)).expect(page)).collect();
    texts.push("水車は昼も夜も回り続けている。".repeat(200));
    texts.push("Größe, naïveté, Łódź — “señor”… €5 😀 don't re-enter e\u{301}tude. ".repeat(100));
    texts.push(format!("{} ", "QUJDRUZHSElKS0xNTk9Q".repeat(4)).repeat(200));
    texts.push("f47ac10b-58cc-4372-a567-0e02b2c3d479,https://example.org/a/b?c=d&e=f#g;x".repeat(200));
    texts
}

#[tokio::test]
async fn every_chunk_fits_the_model_and_nothing_is_lost() {
    let Some(tokenizer) = tokenizer().await else { return };
    let limit = tokenizer.max_tokens_of_text();
    assert_eq!((tokenizer.max_tokens(), limit), (256, 254));
    let mut splitter = Splitter::new(tokenizer.clone(), limit, 40);
    for text in texts() {
        let pieces = splitter.split(&text, &[]);
        let mut at = 0;
        for piece in &pieces {
            let words = &text[piece.range.clone()];
            let tokens = tokenizer.count(words);
            assert!(tokens <= limit, "{tokens} tokens, counted as {}: {words}", piece.tokens);
            assert!(text[at.min(piece.range.start)..piece.range.start].trim().is_empty(), "{piece:?}");
            at = at.max(piece.range.end);
        }
        assert!(text[at..].trim().is_empty());
        assert!(pieces.len() > 1);
    }
}
