//! BERT by candle's own operations, on whatever device its tensors are.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use tracing::warn;

use super::download::{Download, Downloads};
use super::layout::Layout;
use super::ops::{AddNorm, SelfAttention, bias_gelu};
use super::weights::{Shape, Weights};
use crate::batching::{Backend, BackendError};
use crate::{ModelError, Precision};

/// A BERT model that gives the mean of its last layer, scaled to unit length.
pub(crate) struct Bert {
    shape: Shape,
    device: Device,
    downloads: Downloads,
    /// What weights and rows are; sums of many numbers are in single precision whatever it is.
    precision: DType,
    words: Tensor,
    /// Embeddings of positions and of the only token type in use, added up.
    positions: Tensor,
    norm: AddNorm,
    layers: Vec<Layer>,
}

/// Weights are transposed: a product is rows times weights.
struct Layer {
    /// With what makes a query that is scaled already.
    qkv: Tensor,
    qkv_bias: Tensor,
    attended: Tensor,
    attended_norm: AddNorm,
    inner: Tensor,
    inner_bias: Tensor,
    outer: Tensor,
    outer_norm: AddNorm,
}

/// Weights as the model takes them.
struct Converted<'a> {
    weights: &'a Weights,
    shape: &'a Shape,
    precision: DType,
}

impl Bert {
    /// The model in this precision, by default in half precision: what BERT computes is far from the ends of its range.
    /// With scores and what is between the layers in bf16 the cosine to vectors in single precision would fall to 0.999.
    ///
    /// # Errors
    /// When a weight is missing, or the device can't compute the model in this precision.
    pub(super) fn load(
        shape: Shape,
        weights: &Weights,
        path: &Path,
        precision: Precision,
    ) -> Result<(Self, Precision), ModelError> {
        let (precision, dtype) = match precision {
            Precision::Auto | Precision::F16 => (Precision::F16, DType::F16),
            Precision::F32 => (Precision::F32, DType::F32),
            Precision::Bf16 | Precision::Int8 => {
                let reason = "f16 is as fast on a GPU, and more exact";
                return Err(ModelError::Precision { precision: precision.name(), reason });
            }
        };
        let model = Self::assemble(shape, weights, dtype).map_err(|error| ModelError::invalid(path, error))?;
        // Loads the kernels, too; there are none where the device does not compute in this precision.
        match model.forward(&[&[0; 2], &[0]]) {
            Ok(_) => Ok((model, precision)),
            Err(BackendError::OutOfMemory) => Err(ModelError::OutOfMemory { tokens: 3 }),
            Err(BackendError::Failed(error)) => {
                warn!(precision = precision.name(), error, "the GPU does not compute the model");
                Err(ModelError::Precision {
                    precision: precision.name(),
                    reason: "this GPU does not compute the model in it; the log says why",
                })
            }
        }
    }

    pub(super) fn assemble(shape: Shape, weights: &Weights, precision: DType) -> candle_core::Result<Self> {
        let converted = Converted { weights, shape: &shape, precision };
        let words = converted.get("embeddings.word_embeddings.weight")?;
        let positions = weights.positions()?.to_dtype(precision)?;
        let nothing = Tensor::zeros(shape.hidden_size, precision, &weights.device)?;
        let norm = converted.norm(&nothing, "embeddings.LayerNorm")?;
        let layers = (0..shape.num_hidden_layers)
            .map(|layer| Layer::assemble(&converted, &format!("encoder.layer.{layer}")))
            .collect::<candle_core::Result<_>>()?;
        let device = weights.device.clone();
        let downloads = Downloads::new(&device)?;
        Ok(Self { shape, device, downloads, precision, words, positions, norm, layers })
    }

    /// Components of its vectors.
    pub fn dimension(&self) -> usize {
        self.shape.hidden_size
    }

    /// A vector for each sequence, when the device has computed them.
    fn compute(&self, sequences: &[&[u32]]) -> candle_core::Result<Tensor> {
        let layout = Layout::new(sequences, &self.device, self.precision)?;
        let attention = SelfAttention {
            layout: &layout,
            heads: self.shape.num_attention_heads,
            head_width: self.shape.head_width(),
        };
        let words = self.words.index_select(&layout.ids, 0)?;
        let mut rows = self.norm.apply(&words, &self.positions.index_select(&layout.places, 0)?)?;
        for layer in &self.layers {
            rows = layer.compute(&rows, &attention)?;
        }
        layout.mean_unit(&rows)
    }

    #[cfg(test)]
    pub(super) fn vectors(&self, sequences: &[Vec<u32>]) -> Vec<Vec<f32>> {
        self.forward(&sequences.iter().map(Vec::as_slice).collect::<Vec<_>>()).expect("candle computes it")
    }

    fn forward(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, BackendError> {
        self.launch(sequences).and_then(|launched| self.fetch(launched))
    }
}

impl Backend for Bert {
    type Launched = Download;

    fn launch(&self, sequences: &[&[u32]]) -> Result<Download, BackendError> {
        let vectors = self.compute(sequences);
        vectors.and_then(|vectors| self.downloads.begin(vectors)).map_err(|error| classify(&error))
    }

    fn fetch(&self, launched: Download) -> Result<Vec<Vec<f32>>, BackendError> {
        self.downloads.finish(&launched).map_err(|error| classify(&error))
    }
}

impl Layer {
    fn assemble(weights: &Converted<'_>, at: &str) -> candle_core::Result<Self> {
        let get = |name: &str| weights.get(&format!("{at}.{name}"));
        let transposed = |name: &str| get(name)?.t()?.contiguous();
        let norm = |bias: &str, at_norm: &str| weights.norm(&get(bias)?, &format!("{at}.{at_norm}"));
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
        let attended = attention.apply(&rows.matmul(&self.qkv)?.broadcast_add(&self.qkv_bias)?)?;
        let rows = self.attended_norm.apply(&attended.matmul(&self.attended)?, rows)?;
        let inner = bias_gelu(&rows.matmul(&self.inner)?, &self.inner_bias)?;
        self.outer_norm.apply(&inner.matmul(&self.outer)?, &rows)
    }
}

impl Converted<'_> {
    fn get(&self, name: &str) -> candle_core::Result<Tensor> {
        self.weights.get(name)?.to_dtype(self.precision)
    }

    /// Query, key and value of a layer, one after another. Scores need no scale of their own when the query has it.
    fn of_attention(&self, layer: &str, what: &str) -> candle_core::Result<Tensor> {
        #[allow(clippy::cast_precision_loss)]
        let scale = 1.0 / (self.shape.head_width() as f64).sqrt();
        let (all, width) = (self.weights.of_attention(layer, what)?, self.shape.hidden_size);
        let query = (all.narrow(0, 0, width)? * scale)?;
        Tensor::cat(&[query, all.narrow(0, width, 2 * width)?], 0)?.to_dtype(self.precision)
    }

    fn norm(&self, bias: &Tensor, at: &str) -> candle_core::Result<AddNorm> {
        let (scale, shift) = (self.get(&format!("{at}.weight"))?, self.get(&format!("{at}.bias"))?);
        AddNorm::new(bias, &scale, &shift, self.shape.layer_norm_eps)
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
mod tests {
    use super::*;

    #[test]
    fn running_out_of_memory_is_recognised_by_what_cuda_says() {
        let said = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        assert!(matches!(classify(&candle_core::Error::Msg(said.into())), BackendError::OutOfMemory));
        assert!(matches!(classify(&candle_core::Error::Msg("shape mismatch".into())), BackendError::Failed(_)));
    }
}
