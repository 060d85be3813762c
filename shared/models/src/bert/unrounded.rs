//! Layers in which everything between the products is in rows of single precision, whatever the products make of them.

use pulp::Arch;

use super::aligned::Aligned;
use super::attention::{Attention, Scratch};
use super::layer::{Kernels, Layer, Linear, Sequences, parts, put};
use super::product::Edge;
use super::steps::{Step, Steps};

/// Products of rows in single precision.
pub(super) trait Products: Copy {
    /// Weights and bias of a product.
    type Packed;
    /// What a product takes.
    type Left<'a>: Copy;
    /// Memory for it.
    type Taken: Default;

    /// Whether a product rounds what it takes, so that what it takes need not be exact.
    const ROUNDED: bool;
    /// A multiple of the heights of all tiles that are not computed whole for fewer rows; a divisor of [`ROWS`].
    const STEP: usize;

    /// The vectors for what is done in single precision.
    fn arch(self) -> Arch;

    /// Of weights as BERT's files have them: for each column of the result as many numbers as a row has.
    fn packed(self, weights: &[f32], bias: &[f32]) -> Self::Packed;

    /// Numbers of a row of the result.
    fn width(packed: &Self::Packed) -> usize;

    /// What a product takes of rows of so many numbers.
    fn left<'a>(self, rows: &'a [f32], width: usize, memory: &'a mut Self::Taken) -> Self::Left<'a>;

    /// rows * weights + bias, one row of `out` for each row. `sums` is memory.
    fn apply(packed: &Self::Packed, left: Self::Left<'_>, edge: Edge, out: &mut [f32], sums: &mut Aligned);
}

/// Memory of one thread, kept from one call to the next.
#[derive(Default)]
pub(super) struct Memory<T> {
    before: Aligned,
    taken: T,
    attended: Aligned,
    inner: Aligned,
    inner_taken: T,
    sums: Aligned,
    scratch: Scratch,
}

/// A part of the inner layer: the product that makes some of its columns, and what they add to the row.
pub(super) struct Part<T> {
    inner: T,
    outer: T,
}

/// Columns of the inner layer in a part: those of so many rows, the rows and what becomes of them fit into the second cache
/// beside a panel, and a panel of either product fits into the first.
const PART: usize = 384;
/// Rows that are computed at a time.
const ROWS: usize = 96;

impl<P: Products> Kernels for P {
    type Packed = <P as Products>::Packed;
    type Wide = Vec<Part<<P as Products>::Packed>>;
    type Qkv = Aligned;
    type Memory = Memory<P::Taken>;

    fn pack(self, weights: &[f32], bias: &[f32]) -> <P as Products>::Packed {
        self.packed(weights, bias)
    }

    fn pack_wide(self, inner: Linear, outer: Linear) -> Self::Wide {
        let packed = |linear: Linear| self.packed(&linear.weights, &linear.bias);
        parts(&inner, &outer, PART).map(|[inner, outer]| Part { inner: packed(inner), outer: packed(outer) }).collect()
    }

    fn attended_rows(self) -> usize {
        ROWS
    }

    fn inner_rows(self) -> usize {
        ROWS
    }

    fn step(self) -> usize {
        P::STEP
    }

    fn project(layer: &Layer<P>, rows: &[f32], qkv: &mut Aligned, at: &mut Self::Memory, steps: &mut Steps) {
        let left = layer.kernels.left(rows, layer.width(), &mut at.taken);
        P::apply(&layer.qkv, left, Edge::Write, qkv.first(3 * rows.len()), &mut at.sums);
        steps.end(Step::Products);
    }

    fn put(layer: &Layer<P>, part: &Aligned, rows: usize, after: usize, all: &mut Aligned) {
        let width = 3 * layer.width();
        put(part.all(), rows * width, after * width, all.first((after + rows) * width));
    }

    fn attend(layer: &Layer<P>, of: Sequences<'_, P>, rows: &mut [f32], at: &mut Self::Memory, steps: &mut Steps) {
        let Memory { taken, attended, sums, scratch, .. } = at;
        let (arch, heads, head_width) = (layer.kernels.arch(), layer.heads, layer.head_width);
        let Sequences { qkv, lengths, first } = of;
        let out = attended.first(rows.len());
        let (qkv, rounded) = (qkv.all(), P::ROUNDED);
        Attention { qkv, lengths, first, heads, head_width, rounded, scratch, out: &mut *out }.run(arch);
        steps.end(Step::Attention);
        P::apply(&layer.attended, layer.kernels.left(out, layer.width(), taken), Edge::Add, rows, sums);
        steps.end(Step::Products);
        layer.attended_norm.apply(arch, rows);
        steps.end(Step::Norms);
    }

    fn widen(layer: &Layer<P>, rows: &mut [f32], at: &mut Self::Memory, steps: &mut Steps, between: &mut dyn FnMut()) {
        let (kernels, count) = (layer.kernels, rows.len() / layer.width());
        let Memory { before, taken, inner: columns, inner_taken, sums, .. } = at;
        let before = before.first(rows.len());
        before.copy_from_slice(rows);
        let left = kernels.left(before, layer.width(), taken);
        for Part { inner, outer } in &layer.wide {
            let width = P::width(inner);
            let columns = columns.first(count * width);
            P::apply(inner, left, Edge::Gelu, columns, sums);
            P::apply(outer, kernels.left(columns, width, inner_taken), Edge::Add, rows, sums);
            steps.end(Step::Products);
            between();
            steps.begin();
        }
        layer.wide_norm.apply(kernels.arch(), rows);
        steps.end(Step::Norms);
    }

    fn inner(layer: &Layer<P>, rows: &[f32], gelu: bool, at: &mut Self::Memory) {
        let edge = if gelu { Edge::Gelu } else { Edge::Write };
        let Memory { taken, inner: columns, sums, .. } = at;
        let count = rows.len() / layer.width();
        let left = layer.kernels.left(rows, layer.width(), taken);
        for Part { inner, .. } in &layer.wide {
            P::apply(inner, left, edge, columns.first(count * P::width(inner)), sums);
        }
    }
}
