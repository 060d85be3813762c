//! Texts to vectors.

use std::fmt;
use std::time::Instant;

use rayon::ThreadPool;
use rayon::prelude::*;
use tracing::info;

use crate::batching::{Batcher, Texts};
use crate::bert::{self, Bert, Loaded};
use crate::processor::Processor;
use crate::workers::{BYTES_PER_TOKEN, Workers};
use crate::{ModelConfig, ModelError, ModelFiles, Precision, Tokenizer, gpu, hashing, metric};

/// An embedding model, loaded. Calls block and may come from several threads; they share its threads.
pub struct Embedder {
    tokenizer: Tokenizer,
    model: Model,
    model_id: String,
    dimension: usize,
    kernel: &'static str,
}

enum Model {
    /// The test model.
    Hashing,
    /// BERT on the processor.
    Processor(Workers<Processor>),
    /// BERT on a GPU; the threads of the pool make its tokens.
    Gpu { batcher: Box<Batcher<Bert>>, pool: ThreadPool },
}

impl Model {
    fn gpu(bert: Bert, config: &ModelConfig) -> Result<Self, ModelError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.threads())
            .thread_name(|thread| format!("embed-{thread}"))
            .build()
            .map_err(|error| ModelError::Compute(error.to_string()))?;
        Ok(Self::Gpu { batcher: Box::new(Batcher::new(bert, config.max_batch_tokens)), pool })
    }
}

/// Tokens that a thread computes at once, roughly: enough to make the products efficient, few enough that the threads
/// are done at about the same time.
const TOKENS_PER_TASK: usize = 256;

/// Texts whose tokens are made by the threads of a pool.
struct OnPool<'a> {
    texts: &'a [&'a str],
    tokenizer: &'a Tokenizer,
    pool: &'a ThreadPool,
}

impl Texts for OnPool<'_> {
    fn lengths(&self) -> Vec<usize> {
        let most = self.tokenizer.max_tokens();
        self.texts.iter().map(|text| (text.len() / BYTES_PER_TOKEN + 1).min(most)).collect()
    }

    fn tokens(&self, places: &[usize]) -> Result<Vec<Vec<u32>>, ModelError> {
        let texts: Vec<&str> = places.iter().filter_map(|place| self.texts.get(*place).copied()).collect();
        self.pool.install(|| texts.par_iter().map(|text| self.tokenizer.encode(text)).collect())
    }
}

impl fmt::Debug for Embedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedder").field("model_id", &self.model_id).finish_non_exhaustive()
    }
}

impl Embedder {
    /// Loads a model; blocks while its weights are read.
    ///
    /// # Errors
    /// When a file is missing or not what it should be, or the configured device is not there.
    pub fn load(config: &ModelConfig, files: &ModelFiles) -> Result<Self, ModelError> {
        let started = Instant::now();
        let tokenizer = Tokenizer::load(files)?;
        let (model, dimension, precision, kernel) = match files.dir() {
            None => (Model::Hashing, hashing::DIMENSION, Precision::F32, "hashing"),
            Some(dir) => match bert::load(dir, config.device, config.precision, files.max_tokens())? {
                (Loaded::Processor(encoder), precision) => {
                    let (dimension, kernel) = (encoder.dimension(), encoder.kernel().name());
                    let processor = Processor { tokenizer: tokenizer.clone(), encoder };
                    let task = config.max_batch_tokens.min(TOKENS_PER_TASK);
                    let workers = Workers::start(processor, config.threads(), files.max_tokens(), task)?;
                    (Model::Processor(workers), dimension, precision, kernel)
                }
                (Loaded::Gpu(bert), precision) => {
                    gpu::watch();
                    let dimension = bert.dimension();
                    (Model::gpu(bert, config)?, dimension, precision, "cuda")
                }
            },
        };
        let model_id = files.model_id(precision);
        info!(model = model_id, dimension, kernel, seconds = started.elapsed().as_secs_f64(), "model loaded");
        Ok(Self { tokenizer, model, model_id, dimension, kernel })
    }

    /// A vector of unit length for each text, in order. A call with a few short texts (together no longer than one text
    /// may be) does not wait for the longer ones of other threads. Of a longer text only as much counts as the model takes.
    ///
    /// # Errors
    /// When the model fails or a single text does not fit into memory.
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, ModelError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let started = Instant::now();
        let (vectors, tokens) = match &self.model {
            Model::Hashing => {
                let vectors = texts.iter().map(|text| hashing::embed(text)).collect();
                (vectors, texts.iter().map(|text| text.split_ascii_whitespace().count()).sum())
            }
            Model::Processor(workers) => workers.run(texts)?,
            Model::Gpu { batcher, pool } => batcher.run(&OnPool { texts, tokenizer: &self.tokenizer, pool })?,
        };
        metrics::histogram!(metric::EMBED_SECONDS).record(started.elapsed().as_secs_f64());
        metrics::counter!(metric::EMBEDDED_TOKENS).increment(tokens as u64);
        metrics::counter!(metric::EMBEDDED_TEXTS).increment(texts.len() as u64);
        Ok(vectors)
    }

    /// Seconds of each part of the work on these texts, on one thread; none where the processor does not do it.
    ///
    /// # Errors
    /// As [`Embedder::embed`].
    pub fn profile(&self, texts: &[&str]) -> Result<Vec<(&'static str, f64)>, ModelError> {
        match &self.model {
            Model::Processor(workers) => workers.compute().profile(texts),
            Model::Hashing | Model::Gpu { .. } => Ok(Vec::new()),
        }
    }

    /// Floating-point operations a second that so many threads reach at best with what the model is computed with, in
    /// registers; none where the processor does not do it. Takes about a tenth of a second.
    #[must_use]
    pub fn peak_flops(&self, threads: usize) -> Option<f64> {
        match &self.model {
            Model::Processor(workers) => Some(workers.compute().encoder.kernel().peak_flops(threads)),
            Model::Hashing | Model::Gpu { .. } => None,
        }
    }

    /// Id of the model in records: `name@revision/precision`. Vectors of the same id are comparable.
    #[must_use]
    pub fn model_id(&self) -> &str {
        &self.model_id
    }

    /// What computes it: the instructions of the processor that do most of the work (`amx-bf16`, `avx512-bf16`, `avx512f`,
    /// `avx2`, ...), or `cuda`.
    #[must_use]
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// Components of its vectors.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The tokenizer it uses.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::DeviceChoice;

    #[derive(Deserialize)]
    struct Reference {
        texts: Vec<Text>,
    }

    #[derive(Deserialize)]
    struct Text {
        text: String,
        vector: Vec<f32>,
    }

    fn cosine(a: &[f32], b: &[f32]) -> f32 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    /// What a GPU is given, on the processor: candle computes the same on both.
    #[tokio::test]
    async fn half_precision_and_small_batches_give_the_reference_vectors() {
        let reference: Reference = serde_json::from_str(include_str!("../tests/reference_vectors.json")).unwrap();
        let config = ModelConfig { device: DeviceChoice::Cpu, max_batch_tokens: 300, ..ModelConfig::default() };
        let files = match crate::prepare(&config).await {
            Err(error @ ModelError::Unobtainable { .. }) => return println!("skipped: {error}"),
            files => files.unwrap(),
        };
        let texts: Vec<&str> = reference.texts.iter().map(|text| text.text.as_str()).collect();
        for (precision, name, least) in [(Precision::F32, "f32", 0.999_999), (Precision::Auto, "f16", 0.9998)] {
            let (bert, precision) = bert::load_by_candle(files.dir().unwrap(), precision, files.max_tokens()).unwrap();
            let embedder = Embedder {
                tokenizer: Tokenizer::load(&files).unwrap(),
                dimension: bert.dimension(),
                model: Model::gpu(bert, &config).unwrap(),
                model_id: files.model_id(precision),
                kernel: "candle",
            };
            assert_eq!(embedder.model_id(), format!("all-MiniLM-L6-v2@c9745ed1/{name}"));
            let vectors = embedder.embed(&texts).unwrap();
            let nearest = vectors.iter().zip(&reference.texts).map(|(ours, text)| cosine(ours, &text.vector));
            let least_found = nearest.fold(f32::MAX, f32::min);
            println!("{name}: cosine of {least_found:.6} at least");
            assert!(least_found >= least, "{name} has a cosine of {least_found}");
        }
    }
}
