//! How fast texts are cut into chunks, on one core, beside the tokenizer that counts them.

use std::time::Instant;

use color_eyre::eyre::Result;
use serde_json::{Value, json};
use weir_chunk::Splitter;
use weir_chunk::config::ChunkConfig;
use weir_models::{ModelConfig, Tokenizer};

use crate::{at_least, median, pipeline};

/// Documents of the corpus, at most.
const DOCUMENTS: usize = 5_000;
/// Of these the long texts are made.
const PARAGRAPHS: usize = 100;
/// MB/s that chunking is to reach on one core.
const WANTED: f64 = 5.0;

/// Cuts real texts as the service does by default, as they are and a hundred put together. Figures are medians of `rounds`,
/// in MB (10^6 bytes) of text a second.
pub async fn run(rounds: usize) -> Result<Value> {
    let config = ModelConfig::default();
    let tokenizer = Tokenizer::load(&weir_models::prepare(&config).await?)?;
    let (documents, corpus) = pipeline::documents(DOCUMENTS);
    let short: Vec<String> = documents.into_iter().map(|(_, text)| text).collect();
    let long: Vec<String> = short.chunks(PARAGRAPHS).map(|texts| texts.join("\n\n")).collect();
    tokio::task::spawn_blocking(move || {
        let (mut of_short, mut of_long, mut counting) = (Vec::new(), Vec::new(), Vec::new());
        let mut chunks = 0;
        for _ in 0..rounds {
            let mut count = 0;
            of_short.push(rate(&short, |splitter, text| count += splitter.split(text, &[]).len(), &tokenizer));
            of_long.push(rate(&long, |splitter, text| drop(splitter.split(text, &[])), &tokenizer));
            counting.push(rate(&short, |_, text| drop(tokenizer.count(text)), &tokenizer));
            chunks = count;
        }
        let (of_short, of_long) = (median(&mut of_short), median(&mut of_long));
        let bytes: usize = short.iter().map(String::len).sum();
        Ok(json!({
            "corpus": corpus,
            "documents": short.len(),
            "bytes": bytes,
            "chunks": chunks,
            "mb_per_second": of_short,
            "mb_per_second_of_long_texts": of_long,
            "tokenizer_alone_mb_per_second": median(&mut counting),
            "targets": {
                "mb_per_second": at_least(of_short, WANTED),
                "mb_per_second_of_long_texts": at_least(of_long, WANTED),
            },
        }))
    })
    .await?
}

/// MB/s of one pass, by a splitter that has seen nothing yet.
fn rate(texts: &[String], mut pass: impl FnMut(&mut Splitter<Tokenizer>, &str), tokenizer: &Tokenizer) -> f64 {
    let ChunkConfig { overlap_tokens, .. } = ChunkConfig::default();
    let mut splitter = Splitter::new(tokenizer.clone(), tokenizer.max_tokens_of_text(), overlap_tokens);
    let started = Instant::now();
    for text in texts {
        pass(&mut splitter, text);
    }
    let megabytes = texts.iter().map(|text| text.len() as f64 / 1e6).sum::<f64>();
    megabytes / started.elapsed().as_secs_f64()
}
