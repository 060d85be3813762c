//! The steps of the model between the products, as candle offers them on whatever device the tensors are.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::{layer_norm, softmax_last_dim};

/// gelu(x + bias) for each row.
pub(super) fn bias_gelu(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.broadcast_add(bias)?.gelu_erf()
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
    pub fn apply(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let [bias, scale, shift] = [self.rows.get(0)?, self.rows.get(1)?, self.rows.get(2)?];
        layer_norm(&(x.broadcast_add(&bias)? + residual)?, &scale, &shift, self.epsilon)
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
    ///
    /// Sequences of equal length next to each other are computed together.
    pub fn apply(&self, qkv: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let qkv = qkv.broadcast_add(bias)?;
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
        blocks(&qkv, self.lengths, attend)
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

/// A unit vector for each sequence: the direction of the mean of its rows.
pub(super) fn mean_unit(x: &Tensor, lengths: &[usize]) -> Result<Vec<Vec<f32>>> {
    let width = x.dim(D::Minus1)?;
    // Dividing by the number of rows would change the length only.
    let sums = blocks(x, lengths, |rows, count, length| rows.reshape((count, length, width))?.sum(1))?;
    sums.broadcast_div(&sums.sqr()?.sum_keepdim(1)?.sqrt()?)?.to_vec2()
}
