//! BERT without padding: the tokens of all sequences are the rows of one matrix, and only attention knows where one
//! sequence ends. On the processor by kernels of our own ([`Encoder`]), elsewhere by what candle offers ([`Bert`]).

mod aligned;
mod attention;
mod bf16;
mod encoder;
mod kernels;
mod layer;
mod ops;
mod product;
mod simd;
mod single;
mod steps;
mod tile;
mod weights;

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::batching::{Backend, BackendError};
use crate::manifest::WEIGHTS;
use crate::{DeviceChoice, ModelError, Precision};
pub(crate) use encoder::{Encoder, Kernel, Workspace};
use ops::{AddNorm, SelfAttention};
pub(crate) use steps::{Step, Steps};
use weights::{Shape, Weights};

/// A model, where it is computed.
pub(crate) enum Loaded {
    Processor(Encoder),
    Gpu(Bert),
}

/// Loads a model from its folder, and says in which precision it computes.
pub(crate) fn load(
    dir: &Path,
    device: DeviceChoice,
    precision: Precision,
    max_tokens: usize,
) -> Result<(Loaded, Precision), ModelError> {
    let refused = |reason| ModelError::Precision { precision: precision.name(), reason };
    let shape = Shape::read(dir, max_tokens)?;
    let path = dir.join(WEIGHTS);
    let weights = Weights::read(&path, &open(device)?).map_err(|error| ModelError::invalid(&path, error))?;
    let (loaded, computed) = if weights.device.is_cpu() {
        let kernel = Kernel::of(precision).ok_or_else(|| refused("processors do not compute in it"))?;
        (Encoder::assemble(kernel, shape, &weights).map(Loaded::Processor), kernel.precision())
    } else if matches!(precision, Precision::Auto | Precision::F32) {
        (Bert::assemble(shape, &weights).map(Loaded::Gpu), Precision::F32)
    } else {
        return Err(refused("this build does not have it"));
    };
    Ok((loaded.map_err(|error| ModelError::invalid(&path, error))?, computed))
}

/// A BERT model that gives the mean of its last layer, scaled to unit length, by candle's own operations.
pub(crate) struct Bert {
    shape: Shape,
    device: Device,
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
    fn assemble(shape: Shape, weights: &Weights) -> candle_core::Result<Self> {
        let epsilon = shape.layer_norm_eps;
        let words = weights.get("embeddings.word_embeddings.weight")?;
        let positions = weights.positions()?;
        let nothing = Tensor::zeros(shape.hidden_size, DType::F32, &weights.device)?;
        let norm = norm(weights, &nothing, "embeddings.LayerNorm", epsilon)?;
        let layers = (0..shape.num_hidden_layers)
            .map(|layer| Layer::assemble(weights, &format!("encoder.layer.{layer}"), epsilon))
            .collect::<candle_core::Result<_>>()?;
        Ok(Self { shape, device: weights.device.clone(), words, positions, norm, layers })
    }

    /// Components of its vectors.
    pub fn dimension(&self) -> usize {
        self.shape.hidden_size
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
        let mut rows = self.norm.apply(&words, &self.positions.index_select(&places, 0)?)?;
        for layer in &self.layers {
            rows = layer.compute(&rows, &attention)?;
        }
        ops::mean_unit(&rows, &lengths)
    }
}

impl Layer {
    fn assemble(weights: &Weights, at: &str, epsilon: f64) -> candle_core::Result<Self> {
        let get = |name: &str| weights.get(&format!("{at}.{name}"));
        let transposed = |name: &str| get(name)?.t()?.contiguous();
        let norm = |bias: &str, at_norm: &str| norm(weights, &get(bias)?, &format!("{at}.{at_norm}"), epsilon);
        Ok(Self {
            qkv: weights.of_attention(at, "weight")?.t()?.contiguous()?,
            qkv_bias: weights.of_attention(at, "bias")?,
            attended: transposed("attention.output.dense.weight")?,
            attended_norm: norm("attention.output.dense.bias", "attention.output.LayerNorm")?,
            inner: transposed("intermediate.dense.weight")?,
            inner_bias: get("intermediate.dense.bias")?,
            outer: transposed("output.dense.weight")?,
            outer_norm: norm("output.dense.bias", "output.LayerNorm")?,
        })
    }

    fn compute(&self, rows: &Tensor, attention: &SelfAttention<'_>) -> candle_core::Result<Tensor> {
        let attended = attention.apply(&rows.matmul(&self.qkv)?, &self.qkv_bias)?;
        let rows = self.attended_norm.apply(&attended.matmul(&self.attended)?, rows)?;
        let inner = ops::bias_gelu(&rows.matmul(&self.inner)?, &self.inner_bias)?;
        self.outer_norm.apply(&inner.matmul(&self.outer)?, &rows)
    }
}

fn norm(weights: &Weights, bias: &Tensor, at: &str, epsilon: f64) -> candle_core::Result<AddNorm> {
    AddNorm::new(bias, &weights.get(&format!("{at}.weight"))?, &weights.get(&format!("{at}.bias"))?, epsilon)
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
        self.compute(sequences).map_err(|error| classify(&error))
    }
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
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const WIDTH: usize = 64;
    const WORDS: usize = 50;

    fn small() -> Shape {
        Shape {
            hidden_size: WIDTH,
            intermediate_size: 4 * WIDTH,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: 40,
            layer_norm_eps: 1e-12,
            hidden_act: "gelu".into(),
            model_type: "bert".into(),
            position_embedding_type: "absolute".into(),
        }
    }

    fn random_weights() -> Weights {
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
        Weights { tensors, device: Device::Cpu }
    }

    fn sequences(lengths: &[usize]) -> Vec<Vec<u32>> {
        lengths.iter().map(|length| (0..50).cycle().skip(*length).step_by(7).take(*length).collect()).collect()
    }

    /// What runs on a GPU is what candle offers there; here it runs on the processor.
    #[test]
    fn our_kernels_give_what_candle_gives_on_other_devices() {
        let weights = random_weights();
        let sequences = sequences(&[40, 17, 17, 17, 3, 1]);
        let theirs = Bert::assemble(small(), &weights).unwrap();
        let theirs = theirs.forward(&sequences.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        for arch in simd::tests::arches() {
            let ours = Encoder::assemble(Kernel::F32(arch), small(), &weights).unwrap();
            let (mut at, mut pauses) = (Workspace::default(), 0);
            // The second time in memory that holds the results of the first.
            for _ in 0..2 {
                let ours = ours.embed(&sequences, &mut at, &mut || pauses += 1).unwrap();
                assert_eq!(ours.len(), sequences.len());
                for (a, b) in ours.concat().iter().zip(theirs.concat()) {
                    assert!((a - b).abs() < 1e-5, "{a} is not {b}");
                }
            }
            // Twice two layers of one group and two blocks.
            assert_eq!(pauses, 12);
        }
    }

    #[test]
    fn in_bf16_vectors_point_where_those_in_single_precision_do_whatever_is_beside_them() {
        let weights = random_weights();
        let sequences = sequences(&[40, 17, 17, 17, 3, 1, 33, 40, 40]);
        let exact = Encoder::assemble(Kernel::of(Precision::F32).unwrap(), small(), &weights).unwrap();
        let exact = exact.embed(&sequences, &mut Workspace::default(), &mut || ()).unwrap();
        for kernel in bf16::Kernel::of_this_processor() {
            let ours = Encoder::assemble(Kernel::Bf16(kernel), small(), &weights).unwrap();
            let (mut at, mut pauses) = (Workspace::default(), 0);
            // The second time in memory that holds the results of the first.
            for _ in 0..2 {
                let together = ours.embed(&sequences, &mut at, &mut || pauses += 1).unwrap();
                for ((sequence, exact), ours_together) in sequences.iter().zip(&exact).zip(&together) {
                    let cosine: f32 = ours_together.iter().zip(exact).map(|(a, b)| a * b).sum();
                    assert!(cosine > 0.9998, "{kernel:?}: the cosine is {cosine}");
                    let alone = ours.embed(std::slice::from_ref(sequence), &mut at, &mut || ()).unwrap();
                    assert_eq!(&alone[0], ours_together, "{kernel:?}: a vector depends on what is embedded with it");
                }
            }
            assert!(pauses >= 8, "twice two layers of at least one group and one block");
            let gelu = ours.gelu_seconds(100);
            assert!(gelu.is_finite() && gelu >= 0.0);
        }
    }

    #[test]
    fn the_kernel_is_that_of_the_precision_and_of_this_processor() {
        let native = bf16::Kernel::fastest().is_native();
        let automatic = if native { Precision::Bf16 } else { Precision::F32 };
        assert_eq!(Kernel::of(Precision::Auto).unwrap().precision(), automatic);
        assert_eq!(Kernel::of(Precision::F32).unwrap().precision(), Precision::F32);
        assert_eq!(Kernel::of(Precision::Bf16).unwrap().precision(), Precision::Bf16);
        assert!(Kernel::of(Precision::F16).is_none());
        for kernel in bf16::Kernel::of_this_processor() {
            println!("{}: {:.1} GFLOP/s in registers", kernel.name(), kernel.peak_flops() / 1e9);
        }
    }

    #[test]
    fn a_token_or_a_place_that_the_model_does_not_have_is_an_error() {
        let encoder = Encoder::assemble(Kernel::of(Precision::F32).unwrap(), small(), &random_weights()).unwrap();
        let embed = |ids: Vec<u32>| encoder.embed(&[ids], &mut Workspace::default(), &mut || ()).map(|_| ());
        assert!(embed(vec![49; 40]).is_ok());
        assert!(embed(vec![1, 50]).unwrap_err().to_string().contains("token 50 at place 1"));
        assert!(embed(vec![1; 41]).unwrap_err().to_string().contains("at place 40"));
        assert!(embed(vec![u32::MAX]).is_err());
    }

    #[test]
    fn running_out_of_memory_is_recognised_by_what_cuda_says() {
        let said = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        assert!(matches!(classify(&candle_core::Error::Msg(said.into())), BackendError::OutOfMemory));
        assert!(matches!(classify(&candle_core::Error::Msg("shape mismatch".into())), BackendError::Failed(_)));
    }
}
