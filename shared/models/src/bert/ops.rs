//! The steps of the model that have a kernel of our own on the processor, and what candle offers elsewhere.

use candle_core::{CpuStorage, D, InplaceOp2, InplaceOp3, Layout, Result, Shape, Tensor, bail};
use candle_nn::ops::{layer_norm, softmax_last_dim};

use super::attention::Attention;
use super::kernels::{self, Norm};

/// gelu(x + bias) for each row.
pub(super) fn bias_gelu(x: Tensor, bias: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.inplace_op2(bias, &BiasGelu)?;
        Ok(x)
    } else {
        x.broadcast_add(bias)?.gelu_erf()
    }
}

struct BiasGelu;

impl InplaceOp2 for BiasGelu {
    fn name(&self) -> &'static str {
        "bias-gelu"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, x_at: &Layout, bias: &CpuStorage, bias_at: &Layout) -> Result<()> {
        kernels::bias_gelu(floats_mut(x, x_at)?, floats(bias, bias_at)?);
        Ok(())
    }
}

/// Bias of a product, and scale and shift of the layer normalisation after it: three rows.
pub(super) struct AddNorm {
    rows: Tensor,
    epsilon: f32,
}

impl AddNorm {
    pub fn new(bias: &Tensor, scale: &Tensor, shift: &Tensor, epsilon: f64) -> Result<Self> {
        #[allow(clippy::cast_possible_truncation)]
        let epsilon = epsilon as f32;
        Ok(Self { rows: Tensor::stack(&[bias, scale, shift], 0)?, epsilon })
    }

    /// Layer normalisation of x + bias + residual for each row.
    pub fn apply(&self, x: Tensor, residual: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() {
            x.inplace_op3(residual, &self.rows, &AddNormOp { epsilon: self.epsilon })?;
            Ok(x)
        } else {
            let [bias, scale, shift] = [self.rows.get(0)?, self.rows.get(1)?, self.rows.get(2)?];
            layer_norm(&(x.broadcast_add(&bias)? + residual)?, &scale, &shift, self.epsilon)
        }
    }
}

struct AddNormOp {
    epsilon: f32,
}

impl InplaceOp3 for AddNormOp {
    fn name(&self) -> &'static str {
        "add-norm"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_at: &Layout,
        residual: &CpuStorage,
        residual_at: &Layout,
        rows: &CpuStorage,
        rows_at: &Layout,
    ) -> Result<()> {
        let rows = floats(rows, rows_at)?;
        let mut rows = rows.chunks_exact(rows.len() / 3);
        let (Some(bias), Some(scale), Some(shift)) = (rows.next(), rows.next(), rows.next()) else {
            bail!("a normalisation has three rows")
        };
        let norm = Norm { bias, scale, shift, epsilon: self.epsilon };
        kernels::add_norm(floats_mut(x, x_at)?, floats(residual, residual_at)?, norm);
        Ok(())
    }
}

/// Self-attention within sequences that lie one after another.
pub(super) struct SelfAttention<'a> {
    /// Rows of each sequence.
    pub lengths: &'a [usize],
    pub heads: usize,
    pub head_width: usize,
}

impl SelfAttention<'_> {
    /// What each token takes from the others of its sequence, from rows of query, key and value.
    pub fn apply(&self, qkv: &Tensor, bias: &Tensor) -> Result<Tensor> {
        if qkv.device().is_cpu() { qkv.apply_op2_no_bwd(bias, self) } else { self.in_blocks(&qkv.broadcast_add(bias)?) }
    }

    /// With candle's own operations: sequences of equal length next to each other are computed together.
    fn in_blocks(&self, qkv: &Tensor) -> Result<Tensor> {
        let width = self.heads * self.head_width;
        #[allow(clippy::cast_precision_loss)]
        let scale = 1.0 / (self.head_width as f64).sqrt();
        let mut from = 0;
        let mut results = Vec::new();
        for block in self.lengths.chunk_by(|a, b| a == b) {
            let Some(length) = block.first() else { continue };
            let count = block.len();
            // Sequence, part, head, token, component.
            let rows = qkv
                .narrow(0, from, count * length)?
                .reshape((count, *length, 3, self.heads, self.head_width))?
                .permute((2, 0, 3, 1, 4))?
                .contiguous()?;
            let (query, key, value) = (rows.get(0)?, rows.get(1)?, rows.get(2)?);
            let weights = softmax_last_dim(&(query * scale)?.matmul(&key.t()?)?)?;
            let result = weights.matmul(&value)?.transpose(1, 2)?.reshape((count * length, width))?;
            results.push(result);
            from += count * length;
        }
        Tensor::cat(&results, 0)
    }
}

impl candle_core::CustomOp2 for SelfAttention<'_> {
    fn name(&self) -> &'static str {
        "self-attention"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        qkv_at: &Layout,
        bias: &CpuStorage,
        bias_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let attention = Attention {
            qkv: floats(qkv, qkv_at)?,
            bias: floats(bias, bias_at)?,
            lengths: self.lengths,
            heads: self.heads,
            head_width: self.head_width,
        };
        let rows = qkv_at.dims().first().copied().unwrap_or(0);
        Ok((CpuStorage::F32(attention.run()), (rows, self.heads * self.head_width).into()))
    }
}

/// A unit vector for each sequence: the direction of the mean of its rows.
pub(super) fn mean_unit(x: &Tensor, lengths: &[usize]) -> Result<Vec<Vec<f32>>> {
    let width = x.dim(D::Minus1)?;
    if x.device().is_cpu() {
        let (storage, layout) = x.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { bail!("a tensor of the processor lies elsewhere") };
        let mut rest = floats(storage, layout)?;
        let mut vectors = Vec::with_capacity(lengths.len());
        for length in lengths {
            let (rows, after) = rest.split_at(length * width);
            vectors.push(kernels::mean_unit(rows, width));
            rest = after;
        }
        return Ok(vectors);
    }
    let mut from = 0;
    let mut sums = Vec::with_capacity(lengths.len());
    for length in lengths {
        sums.push(x.narrow(0, from, *length)?.sum_keepdim(0)?);
        from += length;
    }
    let sums = Tensor::cat(&sums, 0)?;
    sums.broadcast_div(&sums.sqr()?.sum_keepdim(1)?.sqrt()?)?.to_vec2()
}

fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(all), Some((from, to))) if to <= all.len() => Ok(all.get(from..to).unwrap_or(&[])),
        _ => bail!("expected contiguous f32, got {:?} as {layout:?}", storage_type(storage)),
    }
}

fn floats_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(all), Some((from, to))) if to <= all.len() => Ok(all.get_mut(from..to).unwrap_or(&mut [])),
        _ => bail!("expected contiguous f32, got {layout:?}"),
    }
}

fn storage_type(storage: &CpuStorage) -> candle_core::DType {
    candle_core::backend::BackendStorage::dtype(storage)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn assert_near(a: &Tensor, b: &Tensor) {
        let apart = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        assert!(apart < 2e-5, "apart by {apart}");
    }

    #[test]
    fn attention_on_vectors_is_attention_with_candle_for_any_lengths() {
        let lengths = [1, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 33, 47, 64, 100, 256];
        let (heads, head_width) = (3, 32);
        let rows: usize = lengths.iter().sum();
        let qkv = Tensor::randn(0f32, 1.5, (rows, 3 * heads * head_width), &Device::Cpu).unwrap();
        let bias = Tensor::randn(0f32, 1.0, 3 * heads * head_width, &Device::Cpu).unwrap();
        let attention = SelfAttention { lengths: &lengths, heads, head_width };
        let ours = attention.apply(&qkv, &bias).unwrap();
        assert_near(&ours, &attention.in_blocks(&qkv.broadcast_add(&bias).unwrap()).unwrap());
    }

    #[test]
    fn fused_steps_are_what_candle_computes_one_by_one() {
        let (rows, width) = (37, 96);
        let random = |shape: (usize, usize)| Tensor::randn(0.2f32, 2.0, shape, &Device::Cpu).unwrap();
        let (x, residual) = (random((rows, width)), random((rows, width)));
        let [bias, scale, shift] = [0, 1, 2].map(|_| random((1, width)).squeeze(0).unwrap());
        let sum = x.broadcast_add(&bias).unwrap();
        let ours = bias_gelu(x.copy().unwrap(), &bias).unwrap();
        assert_near(&ours, &sum.gelu_erf().unwrap());
        let ours = AddNorm::new(&bias, &scale, &shift, 1e-12).unwrap().apply(x.copy().unwrap(), &residual).unwrap();
        assert_near(&ours, &layer_norm(&(&sum + &residual).unwrap(), &scale, &shift, 1e-12).unwrap());
    }
}
