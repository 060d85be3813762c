//! The steps of the model between the products, as candle offers them on whatever device the tensors are. In half
//! precision, layer normalisation and softmax add up in single precision all the same: so are candle's kernels.

use candle_core::{Result, Tensor};
use candle_nn::ops::{layer_norm, softmax_last_dim};

use super::layout::Layout;

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
    pub layout: &'a Layout,
    pub heads: usize,
    pub head_width: usize,
}

impl SelfAttention<'_> {
    /// What each token takes from the others of its sequence, from rows of query, key and value. Queries are scaled
    /// already.
    pub fn apply(&self, qkv: &Tensor) -> Result<Tensor> {
        let width = self.heads * self.head_width;
        self.layout.by_group(qkv, |rows, group| {
            let (count, length) = (group.count, group.length);
            // Part, sequence, head, token, component.
            let rows = rows
                .reshape((count, length, 3, self.heads, self.head_width))?
                .permute((2, 0, 3, 1, 4))?
                .contiguous()?;
            let (query, key, value) = (rows.get(0)?, rows.get(1)?, rows.get(2)?);
            let weights = softmax_last_dim(&group.without_padding(query.matmul(&key.t()?)?)?)?;
            weights.matmul(&value)?.transpose(1, 2)?.reshape((count * length, width))
        })
    }
}
