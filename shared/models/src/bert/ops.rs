//! The steps of the model that have a kernel of our own on the processor, and what candle offers elsewhere.

use candle_core::{CpuStorage, D, InplaceOp2, InplaceOp3, Layout, Result, Shape, Tensor, bail};
use candle_nn::ops::{layer_norm, softmax_last_dim};

use super::attention::Attention;
use super::kernels::{self, Norm};

/// Who computes the steps between the products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernels {
    /// Our own, fused, on the vector units of the processor.
    Fused,
    /// candle's, one by one, on whatever device the tensors are.
    Candle,
}

/// gelu(x + bias) for each row.
pub(super) fn bias_gelu(kernels: Kernels, x: Tensor, bias: &Tensor) -> Result<Tensor> {
    match kernels {
        Kernels::Fused => {
            x.inplace_op2(bias, &BiasGelu)?;
            Ok(x)
        }
        Kernels::Candle => x.broadcast_add(bias)?.gelu_erf(),
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
        #[allow(clippy::cast_possible_truncation, reason = "computed in f32 like the rest")]
        let epsilon = epsilon as f32;
        Ok(Self { rows: Tensor::stack(&[bias, scale, shift], 0)?, epsilon })
    }

    /// Layer normalisation of x + bias + residual for each row.
    pub fn apply(&self, kernels: Kernels, x: Tensor, residual: &Tensor) -> Result<Tensor> {
        match kernels {
            Kernels::Fused => {
                x.inplace_op3(residual, &self.rows, &AddNormOp { epsilon: self.epsilon })?;
                Ok(x)
            }
            Kernels::Candle => {
                let [bias, scale, shift] = [self.rows.get(0)?, self.rows.get(1)?, self.rows.get(2)?];
                layer_norm(&(x.broadcast_add(&bias)? + residual)?, &scale, &shift, self.epsilon)
            }
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
    pub fn apply(&self, kernels: Kernels, qkv: &Tensor, bias: &Tensor) -> Result<Tensor> {
        match kernels {
            Kernels::Fused => qkv.apply_op2_no_bwd(bias, self),
            Kernels::Candle => self.in_blocks(&qkv.broadcast_add(bias)?),
        }
    }

    /// With candle's own operations: sequences of equal length next to each other are computed together.
    fn in_blocks(&self, qkv: &Tensor) -> Result<Tensor> {
        let width = self.heads * self.head_width;
        #[allow(clippy::cast_precision_loss)]
        let scale = 1.0 / (self.head_width as f64).sqrt();
        let attend = |rows: Tensor, count: usize, length: usize| {
            // Part, sequence, head, token, component.
            let rows = rows
                .reshape((count, length, 3, self.heads, self.head_width))?
                .permute((2, 0, 3, 1, 4))?
                .contiguous()?;
            let (query, key, value) = (rows.get(0)?, rows.get(1)?, rows.get(2)?);
            let weights = softmax_last_dim(&(query * scale)?.matmul(&key.t()?)?)?;
            weights.matmul(&value)?.transpose(1, 2)?.reshape((count * length, width))
        };
        blocks(qkv, self.lengths, attend)
    }
}

/// Applies `compute` to the rows of sequences of equal length next to each other (with how many there are and their
/// length), and puts the results one after another.
fn blocks(
    rows: &Tensor,
    lengths: &[usize],
    compute: impl Fn(Tensor, usize, usize) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut from = 0;
    let mut results = Vec::new();
    for block in lengths.chunk_by(|a, b| a == b) {
        let (count, length) = (block.len(), block.first().copied().unwrap_or(0));
        results.push(compute(rows.narrow(0, from, count * length)?, count, length)?);
        from += count * length;
    }
    Tensor::cat(&results, 0)
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
pub(super) fn mean_unit(kernels: Kernels, x: &Tensor, lengths: &[usize]) -> Result<Vec<Vec<f32>>> {
    let width = x.dim(D::Minus1)?;
    if kernels == Kernels::Candle {
        // Dividing by the number of rows would change the length only.
        let sums = blocks(x, lengths, |rows, count, length| rows.reshape((count, length, width))?.sum(1))?;
        return sums.broadcast_div(&sums.sqr()?.sum_keepdim(1)?.sqrt()?)?.to_vec2();
    }
    let (storage, layout) = x.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else { bail!("a tensor of the processor lies elsewhere") };
    let mut rest = floats(storage, layout)?;
    let mut vectors = Vec::with_capacity(lengths.len());
    for length in lengths {
        let (rows, after) = rest.split_at(length * width);
        vectors.push(kernels::mean_unit(rows, width));
        rest = after;
    }
    Ok(vectors)
}

fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(all), Some((from, to))) if to <= all.len() => Ok(all.get(from..to).unwrap_or(&[])),
        _ => bail!("expected contiguous f32, got {layout:?}"),
    }
}

fn floats_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(all), Some((from, to))) if to <= all.len() => Ok(all.get_mut(from..to).unwrap_or(&mut [])),
        _ => bail!("expected contiguous f32, got {layout:?}"),
    }
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
        let [ours, theirs] =
            [Kernels::Fused, Kernels::Candle].map(|kernels| attention.apply(kernels, &qkv, &bias).unwrap());
        assert_near(&ours, &theirs);
    }

    #[test]
    fn fused_steps_are_what_candle_computes_one_by_one() {
        let (rows, width) = (37, 96);
        let random = |shape: (usize, usize)| Tensor::randn(0.2f32, 2.0, shape, &Device::Cpu).unwrap();
        let (x, residual) = (random((rows, width)), random((rows, width)));
        let [bias, scale, shift] = [0, 1, 2].map(|_| random((1, width)).squeeze(0).unwrap());
        let norm = AddNorm::new(&bias, &scale, &shift, 1e-12).unwrap();
        let both = [Kernels::Fused, Kernels::Candle];
        let [ours, theirs] = both.map(|kernels| bias_gelu(kernels, x.copy().unwrap(), &bias).unwrap());
        assert_near(&ours, &theirs);
        let [ours, theirs] = both.map(|kernels| norm.apply(kernels, x.copy().unwrap(), &residual).unwrap());
        assert_near(&ours, &theirs);
    }
}
