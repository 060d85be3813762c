//! The files of a BERT model: its shape and its tensors.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::ModelError;
use crate::manifest::CONFIG;

/// config.json, as far as it matters.
#[derive(Debug, Deserialize)]
pub(super) struct Shape {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub layer_norm_eps: f64,
    pub hidden_act: String,
    pub model_type: String,
    #[serde(default = "absolute")]
    pub position_embedding_type: String,
}

pub(super) fn absolute() -> String {
    "absolute".into()
}

impl Shape {
    pub fn read(dir: &Path, max_tokens: usize) -> Result<Self, ModelError> {
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

    pub fn head_width(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

/// Tensors by name, on the device.
pub(super) struct Weights {
    pub tensors: HashMap<String, Tensor>,
    pub device: Device,
}

impl Weights {
    pub fn read(path: &Path, device: &Device) -> candle_core::Result<Self> {
        Ok(Self { tensors: candle_core::safetensors::load(path, device)?, device: device.clone() })
    }

    /// A tensor, in single precision, whether or not its name begins with the name of the architecture.
    pub fn get(&self, name: &str) -> candle_core::Result<Tensor> {
        match self.tensors.get(name).or_else(|| self.tensors.get(&format!("bert.{name}"))) {
            Some(tensor) => tensor.to_dtype(DType::F32),
            None => candle_core::bail!("it has no tensor {name}"),
        }
    }

    /// The same as numbers.
    pub fn numbers(&self, name: &str) -> candle_core::Result<Vec<f32>> {
        self.get(name)?.flatten_all()?.to_vec1()
    }

    /// Query, key and value of a layer, one after another.
    pub fn of_attention(&self, layer: &str, what: &str) -> candle_core::Result<Tensor> {
        let parts = ["query", "key", "value"].map(|part| self.get(&format!("{layer}.attention.self.{part}.{what}")));
        Tensor::cat(&parts.into_iter().collect::<candle_core::Result<Vec<_>>>()?, 0)
    }

    /// Embeddings of positions and of the only token type in use, added up.
    pub fn positions(&self) -> candle_core::Result<Tensor> {
        let types = self.get("embeddings.token_type_embeddings.weight")?;
        self.get("embeddings.position_embeddings.weight")?.broadcast_add(&types.get(0)?)
    }
}
