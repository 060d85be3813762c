//! candle's stock BERT.

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use color_eyre::eyre::{Result, eyre};
use tokenizers::{PaddingParams, TruncationParams};

/// Texts it is given at once: what sentence-transformers takes unless told otherwise.
const BATCH: usize = 32;

/// candle-transformers' BERT as its own example uses it: batches padded to their longest text, mean pooling over what
/// is not padding, normalised.
pub struct Stock {
    tokenizer: tokenizers::Tokenizer,
    model: BertModel,
}

impl Stock {
    pub fn load(dir: &Path, max_length: usize) -> Result<Self> {
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

    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let mut vectors = Vec::with_capacity(texts.len());
        for batch in texts.chunks(BATCH) {
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
