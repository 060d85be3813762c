//! Texts to vectors.

use std::fmt;
use std::time::Instant;

use rayon::ThreadPool;
use rayon::prelude::*;
use tracing::info;

use crate::batching::Batcher;
use crate::bert::{self, Bert, Loaded};
use crate::processor::Processor;
use crate::workers::Workers;
use crate::{ModelConfig, ModelError, ModelFiles, Precision, Tokenizer, gpu, hashing, metric};

/// An embedding model, loaded. Calls block and may come from several threads; they share its threads.
pub struct Embedder {
    tokenizer: Tokenizer,
    model: Model,
    model_id: String,
    dimension: usize,
}

enum Model {
    /// The test model.
    Hashing,
    /// BERT on the processor.
    Processor(Workers<Processor>),
    /// BERT on a GPU; the threads of the pool make its tokens.
    Gpu { batcher: Batcher<Bert>, pool: ThreadPool },
}

/// Tokens that a thread computes at once, roughly: enough to make the products efficient, few enough that the threads
/// are done at about the same time.
const TOKENS_PER_TASK: usize = 256;

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
                    let pool = rayon::ThreadPoolBuilder::new()
                        .num_threads(config.threads())
                        .thread_name(|thread| format!("embed-{thread}"))
                        .build()
                        .map_err(|error| ModelError::Compute(error.to_string()))?;
                    gpu::watch();
                    let dimension = bert.dimension();
                    let batcher = Batcher::new(bert, config.max_batch_tokens);
                    (Model::Gpu { batcher, pool }, dimension, precision, "cuda")
                }
            },
        };
        let model_id = files.model_id(precision);
        info!(model = model_id, dimension, kernel, seconds = started.elapsed().as_secs_f64(), "model loaded");
        Ok(Self { tokenizer, model, model_id, dimension })
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
            Model::Gpu { batcher, pool } => pool.install(|| {
                let sequences: Vec<Vec<u32>> =
                    texts.par_iter().map(|text| self.tokenizer.encode(text)).collect::<Result<_, _>>()?;
                let tokens: usize = sequences.iter().map(Vec::len).sum();
                Ok::<_, ModelError>((batcher.run(&sequences)?, tokens))
            })?,
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
