//! Tokens a second from texts to vectors: Weir's embedder beside candle's stock BERT on the same weights and the same
//! texts, taking turns in one run.

use std::fs;
use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use color_eyre::eyre::{Result, ensure, eyre};
use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::{PaddingParams, TruncationParams};
use weir_models::{DeviceChoice, Embedder, ModelConfig, ModelError};

use crate::{at_least, median};

/// Lengths measured one by one, in tokens, special tokens included.
const LENGTHS: [usize; 4] = [16, 64, 128, 256];
/// Tokens of a measurement at one length.
const TOKENS: usize = 8_192;
/// Tokens of a measurement on mixed lengths.
const MIXED_TOKENS: usize = 40_000;
/// Texts the stock model is given at once: what sentence-transformers takes unless told otherwise.
const STOCK_BATCH: usize = 32;

/// Measures at fixed lengths and on the mixed lengths of a real corpus. Figures are medians of `rounds`, in tokens a
/// second without padding; everything counts, from the text to the normalised vector.
pub async fn run(rounds: usize) -> Result<Value> {
    let config = ModelConfig { device: DeviceChoice::Cpu, ..ModelConfig::default() };
    let files = match weir_models::prepare(&config).await {
        Ok(files) => files,
        Err(error @ (ModelError::Unobtainable { .. } | ModelError::Offline { .. })) => return Ok(skipped(&error)),
        Err(error) => return Err(error.into()),
    };
    let corpus = crate::corpora().join("scifact").join("corpus.jsonl");
    if !corpus.is_file() {
        return Ok(skipped(&format_args!(
            "no {}; set WEIR_CORPORA to the folder with scifact in it",
            corpus.display()
        )));
    }
    let dir = files.dir().ok_or_else(|| eyre!("the model has no files"))?.to_owned();
    tokio::task::spawn_blocking(move || {
        let ours = Embedder::load(&config, &files)?;
        let stock = Stock::load(&dir, ours.tokenizer().max_tokens())?;
        measure(&ours, &stock, &texts(&corpus)?, rounds)
    })
    .await?
}

fn skipped(reason: &dyn std::fmt::Display) -> Value {
    println!("embed: skipped: {reason}");
    json!({ "skipped": reason.to_string() })
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

fn measure(ours: &Embedder, stock: &Stock, texts: &[String], rounds: usize) -> Result<Value> {
    let mut figures = serde_json::Map::new();
    println!(
        "{:>12} {:>10} {:>10} {:>14} {:>7} {:>10}",
        "tokens/s", "weir", "candle", "candle sorted", "ratio", "to sorted"
    );
    for length in LENGTHS {
        let texts = of_length(ours, texts, length);
        ensure!(!texts.is_empty(), "the corpus has no text of {length} tokens");
        figures.insert(length.to_string(), compare(&format!("{length} tokens"), ours, stock, &texts, rounds)?);
    }
    let mixed = windows(ours, texts);
    let compared = compare("mixed", ours, stock, &mixed, rounds)?;
    let ratio = compared.get("ratio").and_then(Value::as_f64).unwrap_or_default();
    figures.insert("mixed".into(), compared);
    figures.insert("targets".into(), json!({ "ratio_on_mixed_lengths": at_least(ratio, 2.0) }));
    figures.insert("threads".into(), json!(ModelConfig::default().threads()));
    Ok(Value::Object(figures))
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

/// The corpus cut into pieces that fit the model: full ones and what is left of each document.
fn windows(embedder: &Embedder, texts: &[String]) -> Vec<String> {
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
        if total >= MIXED_TOKENS {
            break;
        }
    }
    pieces
}

/// Both on the same texts, taking turns.
fn compare(what: &str, ours: &Embedder, stock: &Stock, texts: &[String], rounds: usize) -> Result<Value> {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let lengths = texts.iter().map(|text| Ok(ours.tokenizer().encode(text)?.len())).collect::<Result<Vec<_>>>()?;
    let mut sorted: Vec<(usize, &str)> = lengths.iter().copied().zip(texts.iter().copied()).collect();
    sorted.sort_by_key(|(length, _)| *length);
    let sorted: Vec<&str> = sorted.into_iter().map(|(_, text)| text).collect();
    let tokens = count(lengths.iter().sum());
    let rate = |start: Instant| tokens / start.elapsed().as_secs_f64();

    let few = texts.get(..texts.len().min(STOCK_BATCH)).unwrap_or_default();
    let apart = ours.embed(few)?.concat().into_iter().zip(stock.embed(few)?.concat());
    let apart = apart.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    ensure!(apart < 1e-4, "the two models differ by {apart}");

    let (mut weir, mut candle, mut candle_sorted) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        ours.embed(&texts)?;
        weir.push(rate(start));
        let start = Instant::now();
        stock.embed(&texts)?;
        candle.push(rate(start));
        let start = Instant::now();
        stock.embed(&sorted)?;
        candle_sorted.push(rate(start));
    }
    let (weir, candle, candle_sorted) = (median(&mut weir), median(&mut candle), median(&mut candle_sorted));
    let (ratio, ratio_sorted) = (weir / candle, weir / candle_sorted);
    println!("{what:>12} {weir:>10.0} {candle:>10.0} {candle_sorted:>14.0} {ratio:>7.2} {ratio_sorted:>10.2}");
    Ok(json!({
        "texts": texts.len(),
        "mean_tokens": tokens / count(texts.len()),
        "weir_tokens_per_second": weir,
        "candle_tokens_per_second": candle,
        "candle_sorted_tokens_per_second": candle_sorted,
        "ratio": ratio,
        "ratio_to_sorted": ratio_sorted,
    }))
}

#[allow(clippy::cast_precision_loss)]
fn count(n: usize) -> f64 {
    n as f64
}

/// candle-transformers' BERT as its own example uses it: batches padded to their longest text, mean pooling over what
/// is not padding, normalised.
struct Stock {
    tokenizer: tokenizers::Tokenizer,
    model: BertModel,
}

impl Stock {
    fn load(dir: &Path, max_length: usize) -> Result<Self> {
        let mut tokenizer =
            tokenizers::Tokenizer::from_file(dir.join("tokenizer.json")).map_err(|error| eyre!(error))?;
        tokenizer.with_padding(Some(PaddingParams::default()));
        tokenizer
            .with_truncation(Some(TruncationParams { max_length, ..TruncationParams::default() }))
            .map_err(|error| eyre!(error))?;
        let config: Config = serde_json::from_str(&fs::read_to_string(dir.join("config.json"))?)?;
        let weights = fs::read(dir.join("model.safetensors"))?;
        let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu)?;
        Ok(Self { tokenizer, model: BertModel::load(weights, &config)? })
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let mut vectors = Vec::with_capacity(texts.len());
        for batch in texts.chunks(STOCK_BATCH) {
            vectors.extend(self.batch(batch)?);
        }
        Ok(vectors)
    }

    fn batch(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let encodings = self.tokenizer.encode_batch(texts.to_vec(), true).map_err(|error| eyre!(error))?;
        let matrix = |part: fn(&tokenizers::Encoding) -> &[u32]| -> Result<Tensor> {
            let rows = encodings.iter().map(|encoding| Tensor::new(part(encoding), &Device::Cpu));
            Ok(Tensor::stack(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
        };
        let (ids, mask) = (matrix(tokenizers::Encoding::get_ids)?, matrix(tokenizers::Encoding::get_attention_mask)?);
        let rows = self.model.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
        let mask = mask.to_dtype(DType::F32)?.unsqueeze(2)?;
        let mean = rows.broadcast_mul(&mask)?.sum(1)?.broadcast_div(&mask.sum(1)?)?;
        Ok(mean.broadcast_div(&mean.sqr()?.sum_keepdim(1)?.sqrt()?)?.to_vec2()?)
    }
}
