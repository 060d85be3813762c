//! BERT without padding: the tokens of all sequences are the rows of one matrix, and only attention knows where one
//! sequence ends.

mod attention;
mod kernels;
mod ops;
mod simd;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::Deserialize;

use crate::batching::{Backend, BackendError};
use crate::manifest::{CONFIG, WEIGHTS};
use crate::{DeviceChoice, ModelError};
use ops::{AddNorm, Kernels, SelfAttention};

/// Rows of a matrix that one thread works on, at most (one sequence may exceed it): enough to make the products
/// efficient, few enough to keep the rows in the cache.
const ROWS_PER_TASK: usize = 512;

/// config.json, as far as it matters.
#[derive(Debug, Deserialize)]
struct Shape {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    layer_norm_eps: f64,
    hidden_act: String,
    model_type: String,
    #[serde(default = "absolute")]
    position_embedding_type: String,
}

fn absolute() -> String {
    "absolute".into()
}

impl Shape {
    fn read(dir: &Path, max_tokens: usize) -> Result<Self, ModelError> {
        let path = dir.join(CONFIG);
        let text = fs::read_to_string(&path).map_err(ModelError::io("read", &path))?;
        let shape: Self = serde_json::from_str(&text).map_err(|error| ModelError::invalid(&path, error))?;
        let known = shape.model_type == "bert"
            && shape.hidden_act == "gelu"
            && shape.position_embedding_type == "absolute"
            && shape.num_attention_heads > 0
            && shape.hidden_size.is_multiple_of(16 * shape.num_attention_heads)
            && shape.intermediate_size.is_multiple_of(16)
            && max_tokens <= shape.max_position_embeddings;
        if known {
            Ok(shape)
        } else {
            let reason = "only BERT with gelu, absolute positions, heads and inner layers of a multiple of 16 and at \
                          least as many positions as the tokens of a text is supported";
            Err(ModelError::invalid(&path, format_args!("{reason}; it says {shape:?}")))
        }
    }

    fn head_width(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

/// A BERT model that gives the mean of its last layer, scaled to unit length.
pub(crate) struct Bert {
    shape: Shape,
    device: Device,
    kernels: Kernels,
    words: Tensor,
    /// Embeddings of positions and of the only token type in use, added up.
    positions: Tensor,
    norm: AddNorm,
    layers: Vec<Layer>,
}

/// Weights are transposed: a product is rows times weights.
struct Layer {
    qkv: Tensor,
    qkv_bias: Tensor,
    attended: Tensor,
    attended_norm: AddNorm,
    inner: Tensor,
    inner_bias: Tensor,
    outer: Tensor,
    outer_norm: AddNorm,
}

impl Bert {
    /// Loads a model from its folder.
    pub fn load(dir: &Path, device: DeviceChoice, max_tokens: usize) -> Result<Self, ModelError> {
        let shape = Shape::read(dir, max_tokens)?;
        let path = dir.join(WEIGHTS);
        let weights = Weights::read(&path, &open(device)?).map_err(|error| ModelError::invalid(&path, error))?;
        Self::assemble(shape, &weights).map_err(|error| ModelError::invalid(&path, error))
    }

    fn assemble(shape: Shape, weights: &Weights) -> candle_core::Result<Self> {
        let epsilon = shape.layer_norm_eps;
        let words = weights.get("embeddings.word_embeddings.weight")?;
        let types = weights.get("embeddings.token_type_embeddings.weight")?;
        let positions = weights.get("embeddings.position_embeddings.weight")?.broadcast_add(&types.get(0)?)?;
        let nothing = Tensor::zeros(shape.hidden_size, DType::F32, &weights.device)?;
        let norm = weights.norm(&nothing, "embeddings.LayerNorm", epsilon)?;
        let layers = (0..shape.num_hidden_layers)
            .map(|layer| Layer::assemble(weights, &format!("encoder.layer.{layer}"), epsilon))
            .collect::<candle_core::Result<_>>()?;
        let kernels = if weights.device.is_cpu() { Kernels::Fused } else { Kernels::Candle };
        Ok(Self { shape, device: weights.device.clone(), kernels, words, positions, norm, layers })
    }

    /// Components of its vectors.
    pub fn dimension(&self) -> usize {
        self.shape.hidden_size
    }

    /// Whether it runs on a GPU.
    pub fn on_gpu(&self) -> bool {
        self.device.is_cuda()
    }

    fn compute(&self, sequences: &[&[u32]]) -> candle_core::Result<Vec<Vec<f32>>> {
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.len()).collect();
        let places: Vec<u32> = sequences.iter().flat_map(|sequence| (0u32..).zip(*sequence).map(|(i, _)| i)).collect();
        let ids = Tensor::new(sequences.concat(), &self.device)?;
        let places = Tensor::new(places, &self.device)?;
        let attention = SelfAttention {
            lengths: &lengths,
            heads: self.shape.num_attention_heads,
            head_width: self.shape.head_width(),
        };
        let words = self.words.index_select(&ids, 0)?;
        let mut rows = self.norm.apply(self.kernels, words, &self.positions.index_select(&places, 0)?)?;
        for layer in &self.layers {
            rows = layer.compute(self.kernels, &rows, &attention)?;
        }
        ops::mean_unit(self.kernels, &rows, &lengths)
    }
}

impl Layer {
    fn assemble(weights: &Weights, at: &str, epsilon: f64) -> candle_core::Result<Self> {
        let get = |name: &str| weights.get(&format!("{at}.{name}"));
        let transposed = |name: &str| get(name)?.t()?.contiguous();
        let parts = ["query", "key", "value"];
        let all = |what: &str| -> candle_core::Result<Tensor> {
            let parts = parts.iter().map(|part| get(&format!("attention.self.{part}.{what}")));
            Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)
        };
        let norm = |bias: &str, norm: &str| weights.norm(&get(bias)?, &format!("{at}.{norm}"), epsilon);
        Ok(Self {
            qkv: all("weight")?.t()?.contiguous()?,
            qkv_bias: all("bias")?,
            attended: transposed("attention.output.dense.weight")?,
            attended_norm: norm("attention.output.dense.bias", "attention.output.LayerNorm")?,
            inner: transposed("intermediate.dense.weight")?,
            inner_bias: get("intermediate.dense.bias")?,
            outer: transposed("output.dense.weight")?,
            outer_norm: norm("output.dense.bias", "output.LayerNorm")?,
        })
    }

    fn compute(&self, kernels: Kernels, rows: &Tensor, attention: &SelfAttention<'_>) -> candle_core::Result<Tensor> {
        let attended = attention.apply(kernels, &rows.matmul(&self.qkv)?, &self.qkv_bias)?;
        let rows = self.attended_norm.apply(kernels, attended.matmul(&self.attended)?, rows)?;
        let inner = ops::bias_gelu(kernels, rows.matmul(&self.inner)?, &self.inner_bias)?;
        self.outer_norm.apply(kernels, inner.matmul(&self.outer)?, &rows)
    }
}

/// Tensors by name, on the device.
struct Weights {
    tensors: HashMap<String, Tensor>,
    device: Device,
}

impl Weights {
    fn read(path: &Path, device: &Device) -> candle_core::Result<Self> {
        Ok(Self { tensors: candle_core::safetensors::load(path, device)?, device: device.clone() })
    }

    /// A tensor, in single precision, whether or not its name begins with the name of the architecture.
    fn get(&self, name: &str) -> candle_core::Result<Tensor> {
        match self.tensors.get(name).or_else(|| self.tensors.get(&format!("bert.{name}"))) {
            Some(tensor) => tensor.to_dtype(DType::F32),
            None => candle_core::bail!("it has no tensor {name}"),
        }
    }

    fn norm(&self, bias: &Tensor, at: &str, epsilon: f64) -> candle_core::Result<AddNorm> {
        AddNorm::new(bias, &self.get(&format!("{at}.weight"))?, &self.get(&format!("{at}.bias"))?, epsilon)
    }
}

/// The device that was asked for.
fn open(choice: DeviceChoice) -> Result<Device, ModelError> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto => Ok(first_gpu().unwrap_or(Device::Cpu)),
        DeviceChoice::Cuda => first_gpu().map_err(|reason| ModelError::Device { device: "cuda", reason }),
    }
}

#[cfg(feature = "cuda")]
fn first_gpu() -> Result<Device, String> {
    Device::new_cuda(0).map_err(|error| error.to_string())
}

#[cfg(not(feature = "cuda"))]
fn first_gpu() -> Result<Device, String> {
    Err("this build does not support it; build with --features cuda".into())
}

impl Backend for Bert {
    fn forward(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, BackendError> {
        if self.kernels == Kernels::Candle {
            return self.compute(sequences).map_err(|error| classify(&error));
        }
        let tokens: usize = sequences.iter().map(|sequence| sequence.len()).sum();
        let rows = tokens.div_ceil(rayon::current_num_threads()).min(ROWS_PER_TASK);
        let tasks = split(sequences, rows);
        let results: Result<Vec<_>, _> = tasks.into_par_iter().map(|task| self.compute(task)).collect();
        Ok(results.map_err(|error| classify(&error))?.concat())
    }
}

/// Cuts a batch into tasks of at most so many rows, or one sequence.
fn split<'a>(mut sequences: &'a [&'a [u32]], rows: usize) -> Vec<&'a [&'a [u32]]> {
    let mut tasks = Vec::new();
    while !sequences.is_empty() {
        let mut taken = 0;
        let fits = |sequence: &&&[u32]| {
            taken += sequence.len();
            taken <= rows
        };
        let (task, rest) = sequences.split_at(sequences.iter().take_while(fits).count().max(1));
        tasks.push(task);
        sequences = rest;
    }
    tasks
}

/// CUDA and its libraries say it in words only.
fn classify(error: &candle_core::Error) -> BackendError {
    let said = error.to_string();
    let lower = said.to_lowercase();
    if ["out of memory", "out_of_memory", "alloc_failed"].iter().any(|words| lower.contains(words)) {
        BackendError::OutOfMemory
    } else {
        BackendError::Failed(said)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_precision_loss)]
mod tests {
    use super::*;

    const WIDTH: usize = 64;
    const WORDS: usize = 50;

    /// A small model with random weights, computed in this way.
    fn small(tensors: &HashMap<String, Tensor>, kernels: Kernels) -> Bert {
        let shape = Shape {
            hidden_size: WIDTH,
            intermediate_size: 4 * WIDTH,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: 40,
            layer_norm_eps: 1e-12,
            hidden_act: "gelu".into(),
            model_type: "bert".into(),
            position_embedding_type: absolute(),
        };
        let weights = Weights { tensors: tensors.clone(), device: Device::Cpu };
        Bert { kernels, ..Bert::assemble(shape, &weights).unwrap() }
    }

    fn random_weights() -> HashMap<String, Tensor> {
        let mut tensors = HashMap::new();
        let mut add = |name: String, shape: &[usize]| {
            tensors.insert(name, Tensor::randn(0f32, 0.3, shape, &Device::Cpu).unwrap());
        };
        for (name, rows) in [("word", WORDS), ("position", 40), ("token_type", 2)] {
            add(format!("bert.embeddings.{name}_embeddings.weight"), &[rows, WIDTH]);
        }
        let mut norms = vec!["embeddings.LayerNorm".to_owned()];
        for layer in 0..2 {
            let at = format!("encoder.layer.{layer}");
            let linear = [
                ("attention.self.query", WIDTH, WIDTH),
                ("attention.self.key", WIDTH, WIDTH),
                ("attention.self.value", WIDTH, WIDTH),
                ("attention.output.dense", WIDTH, WIDTH),
                ("intermediate.dense", 4 * WIDTH, WIDTH),
                ("output.dense", WIDTH, 4 * WIDTH),
            ];
            for (name, to, from) in linear {
                add(format!("bert.{at}.{name}.weight"), &[to, from]);
                add(format!("bert.{at}.{name}.bias"), &[to]);
            }
            norms.extend(["attention.output", "output"].map(|part| format!("{at}.{part}.LayerNorm")));
        }
        for norm in norms {
            add(format!("bert.{norm}.weight"), &[WIDTH]);
            add(format!("bert.{norm}.bias"), &[WIDTH]);
        }
        tensors
    }

    /// What runs on a GPU is what candle offers there; here it runs on the processor.
    #[test]
    fn our_kernels_give_what_candle_gives_on_other_devices() {
        let tensors = random_weights();
        let [ours, theirs] = [Kernels::Fused, Kernels::Candle].map(|kernels| small(&tensors, kernels));
        let lengths = [40, 17, 17, 17, 3, 1];
        let sequences: Vec<Vec<u32>> =
            lengths.iter().map(|length| (0..50).cycle().skip(*length).step_by(7).take(*length).collect()).collect();
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let (ours, theirs) = (ours.forward(&sequences).unwrap(), theirs.forward(&sequences).unwrap());
        assert_eq!(ours.len(), lengths.len());
        for (a, b) in ours.concat().iter().zip(theirs.concat()) {
            assert!((a - b).abs() < 1e-5, "{a} is not {b}");
        }
    }

    #[test]
    fn tasks_hold_every_sequence_once_and_in_order() {
        let sequences: Vec<Vec<u32>> = [9, 8, 8, 5, 2, 2, 1].iter().map(|length| vec![1; *length]).collect();
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let tasks = split(&sequences, 8);
        assert_eq!(tasks.concat(), sequences);
        assert_eq!(tasks.iter().map(|task| task.len()).collect::<Vec<_>>(), [1, 1, 1, 2, 2]);
    }

    #[test]
    fn running_out_of_memory_is_recognised_by_what_cuda_says() {
        let said = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        assert!(matches!(classify(&candle_core::Error::Msg(said.into())), BackendError::OutOfMemory));
        assert!(matches!(classify(&candle_core::Error::Msg("shape mismatch".into())), BackendError::Failed(_)));
    }
}
