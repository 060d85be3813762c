//! A layer of the model, whatever kernels compute it.

use candle_core::Result;
use pulp::Arch;

use super::kernels::Norm;
use super::steps::Steps;
use super::weights::{Shape, Weights};

/// What the products and the attention of a layer are computed with. What is in the rows between two layers, and between
/// the two parts of one, is in single precision with all of them.
pub(super) trait Kernels: Copy {
    /// Weights and bias of a product, as the kernels read them.
    type Packed;
    /// Those of the two products of the part that each token has for itself.
    type Wide;
    /// Rows of queries, keys and values.
    type Qkv: Default + Send + Sync;
    /// Memory of one thread for the rest, kept from one call to the next.
    type Memory: Default;

    /// Of weights as BERT's files have them: for each column of the result as many numbers as a row has.
    fn pack(self, weights: &[f32], bias: &[f32]) -> Self::Packed;

    /// Of the same, of the product that widens a row and of the one that makes it what it was.
    fn pack_wide(self, inner: Linear, outer: Linear) -> Self::Wide;

    /// Rows whose queries, keys and values are computed at a time, at least (unless there are no more): whole sequences.
    fn attended_rows(self) -> usize;

    /// Rows whose inner layer is computed at a time, at most, so that it stays in the second cache: a multiple of `step`.
    fn inner_rows(self) -> usize;

    /// Rows that the kernels take at a time.
    fn step(self) -> usize;

    /// Queries, keys and values of rows.
    fn project(layer: &Layer<Self>, rows: &[f32], qkv: &mut Self::Qkv, at: &mut Self::Memory, steps: &mut Steps);

    /// Puts those of so many rows behind the first `after` of all, which are a multiple of `step`.
    fn put(layer: &Layer<Self>, part: &Self::Qkv, rows: usize, after: usize, all: &mut Self::Qkv);

    /// The part of a layer that looks from one token to others. `rows` are some of those of the sequences.
    fn attend(layer: &Layer<Self>, of: Sequences<'_, Self>, rows: &mut [f32], at: &mut Self::Memory, steps: &mut Steps);

    /// The part of a layer that each token has for itself. May call `between`, as [`super::Encoder::embed`] does.
    fn widen(
        layer: &Layer<Self>,
        rows: &mut [f32],
        at: &mut Self::Memory,
        steps: &mut Steps,
        between: &mut dyn FnMut(),
    );

    /// The first product of that part alone, with or without its GELU.
    fn inner(layer: &Layer<Self>, rows: &[f32], gelu: bool, at: &mut Self::Memory);
}

/// Rows of a block where blocks of at most `most` rows share so many rows evenly, in steps of which `most` is a multiple: a
/// small last one would read all weights for a few rows.
fn evenly(rows: usize, most: usize, step: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most).max(1)).next_multiple_of(step).max(step)
}

/// Copies the first `count` of a part to their place.
pub(super) fn put<T: Copy>(part: &[T], count: usize, after: usize, all: &mut [T]) {
    if let (Some(part), Some(slots)) = (part.get(..count), all.get_mut(after..after + count)) {
        slots.copy_from_slice(part);
    }
}

/// Sequences of which some rows are at hand.
pub(super) struct Sequences<'a, K: Kernels> {
    /// Queries, keys and values of all their rows.
    pub qkv: &'a K::Qkv,
    /// Rows of each.
    pub lengths: &'a [usize],
    /// The first row that is at hand.
    pub first: usize,
}

/// Memory of one thread, kept from one call to the next.
pub(super) struct Room<K: Kernels> {
    pub memory: K::Memory,
    pub qkv: K::Qkv,
}

impl<K: Kernels> Default for Room<K> {
    fn default() -> Self {
        Self { memory: K::Memory::default(), qkv: K::Qkv::default() }
    }
}

/// Weights and bias of a product, as the files of the model have them.
pub(super) struct Linear {
    pub weights: Vec<f32>,
    pub bias: Vec<f32>,
}

/// The part of a layer that each token has for itself, in parts of so many columns of what is between its two products: what
/// makes them, and what they add to the row.
pub(super) fn parts<'a>(
    inner: &'a Linear,
    outer: &'a Linear,
    columns: usize,
) -> impl Iterator<Item = [Linear; 2]> + use<'a> {
    let (all, width) = (inner.bias.len(), outer.bias.len());
    (0..all).step_by(columns).map(move |from| {
        let to = all.min(from + columns);
        let of_rows = outer.weights.chunks_exact(all).flat_map(|row| row.get(from..to).unwrap_or(&[]));
        // What is added once only.
        let bias = if from == 0 { outer.bias.clone() } else { vec![0.0; width] };
        let some = |numbers: &[f32], from, to| numbers.get(from..to).unwrap_or(&[]).to_vec();
        let weights = some(&inner.weights, from * width, to * width);
        [Linear { weights, bias: some(&inner.bias, from, to) }, Linear { weights: of_rows.copied().collect(), bias }]
    })
}

/// Weights of a layer.
pub(super) struct Layer<K: Kernels> {
    pub kernels: K,
    pub heads: usize,
    pub head_width: usize,
    pub qkv: K::Packed,
    pub attended: K::Packed,
    pub attended_norm: Norm,
    pub wide: K::Wide,
    pub wide_norm: Norm,
}

impl<K: Kernels> Layer<K> {
    /// All layers of a model.
    pub fn all(kernels: K, shape: &Shape, weights: &Weights) -> Result<Vec<Self>> {
        let layer = |layer| Self::assemble(kernels, shape, weights, &format!("encoder.layer.{layer}"));
        (0..shape.num_hidden_layers).map(layer).collect()
    }

    fn assemble(kernels: K, shape: &Shape, weights: &Weights, at: &str) -> Result<Self> {
        let linear = |name: &str| -> Result<Linear> {
            let numbers = |what: &str| weights.numbers(&format!("{at}.{name}.{what}"));
            Ok(Linear { weights: numbers("weight")?, bias: numbers("bias")? })
        };
        let attended = linear("attention.output.dense")?;
        // Queries come divided by the root of their width.
        #[allow(clippy::cast_precision_loss)]
        let scale = (shape.head_width() as f32).sqrt().recip();
        let queries_divided = |what: &str| -> Result<Vec<f32>> {
            let mut numbers: Vec<f32> = weights.of_attention(at, what)?.flatten_all()?.to_vec1()?;
            let queries = numbers.len() / 3;
            numbers.iter_mut().take(queries).for_each(|x| *x *= scale);
            Ok(numbers)
        };
        Ok(Self {
            kernels,
            heads: shape.num_attention_heads,
            head_width: shape.head_width(),
            qkv: kernels.pack(&queries_divided("weight")?, &queries_divided("bias")?),
            attended: kernels.pack(&attended.weights, &attended.bias),
            attended_norm: Norm::of(shape, weights, &format!("{at}.attention.output.LayerNorm"))?,
            wide: kernels.pack_wide(linear("intermediate.dense")?, linear("output.dense")?),
            wide_norm: Norm::of(shape, weights, &format!("{at}.output.LayerNorm"))?,
        })
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        self.heads * self.head_width
    }

    /// Rows whose inner layer is computed at a time, of so many.
    pub fn inner_rows(&self, of: usize) -> usize {
        evenly(of, self.kernels.inner_rows(), self.kernels.step())
    }
}

impl Norm {
    /// A layer normalisation by its name.
    pub fn of(shape: &Shape, weights: &Weights, at: &str) -> Result<Self> {
        #[allow(clippy::cast_possible_truncation, reason = "computed in f32 like the rest")]
        let epsilon = shape.layer_norm_eps as f32;
        let numbers = |what: &str| weights.numbers(&format!("{at}.{what}"));
        Ok(Self { scale: numbers("weight")?, shift: numbers("bias")?, epsilon })
    }
}

/// The vectors of an instruction set, as logs have it.
pub(super) fn arch_name(arch: Arch) -> &'static str {
    match arch {
        #[cfg(target_arch = "x86_64")]
        Arch::V4(_) => "avx512f",
        #[cfg(target_arch = "x86_64")]
        Arch::V3(_) => "avx2",
        Arch::Scalar => "scalar",
        #[allow(unreachable_patterns, reason = "other architectures have other vectors")]
        _ => "vectors",
    }
}
