//! Layers in single precision.

use pulp::Arch;

use super::aligned::Aligned;
use super::attention::{Attention, Scratch};
use super::layer::{Kernels, Layer, Linear, Sequences, parts, put};
use super::product::{Edge, Packed};
use super::steps::{Step, Steps};

/// Memory of one thread, kept from one call to the next.
#[derive(Debug, Default)]
pub(super) struct Memory {
    attended: Aligned,
    inner: Aligned,
    sums: Aligned,
    scratch: Scratch,
}

/// A part of the inner layer: the product that makes some of its columns, and what they add to the row.
pub(super) struct Part {
    inner: Packed,
    outer: Packed,
}

/// Columns of the inner layer in a part: those of so many rows, the rows and what becomes of them fit into the second cache
/// beside a panel, and a panel of either product fits into the first.
const PART: usize = 384;

impl Kernels for Arch {
    type Packed = Packed;
    type Wide = Vec<Part>;
    type Qkv = Aligned;
    type Memory = Memory;

    fn pack(self, weights: &[f32], bias: &[f32]) -> Packed {
        Packed::new(self, weights, bias)
    }

    fn pack_wide(self, inner: Linear, outer: Linear) -> Vec<Part> {
        let packed = |linear: Linear| Packed::new(self, &linear.weights, &linear.bias);
        parts(&inner, &outer, PART).map(|[inner, outer]| Part { inner: packed(inner), outer: packed(outer) }).collect()
    }

    fn attended_rows(self) -> usize {
        96
    }

    /// A multiple of all tiles' heights.
    fn inner_rows(self) -> usize {
        96
    }

    fn step(self) -> usize {
        6
    }

    fn project(layer: &Layer<Self>, rows: &[f32], qkv: &mut Aligned, _: &mut Memory, steps: &mut Steps) {
        layer.qkv.apply(rows, Edge::Write, qkv.first(3 * rows.len()));
        steps.end(Step::Products);
    }

    fn put(layer: &Layer<Self>, part: &Aligned, rows: usize, after: usize, all: &mut Aligned) {
        let width = 3 * layer.width();
        put(part.all(), rows * width, after * width, all.first((after + rows) * width));
    }

    fn attend(layer: &Layer<Self>, of: Sequences<'_, Self>, rows: &mut [f32], at: &mut Memory, steps: &mut Steps) {
        let Memory { attended, scratch, .. } = at;
        let (heads, head_width) = (layer.heads, layer.head_width);
        let Sequences { qkv, lengths, first } = of;
        let out = attended.first(rows.len());
        let (qkv, rounded) = (qkv.all(), false);
        Attention { qkv, lengths, first, heads, head_width, rounded, scratch, out: &mut *out }.run(layer.kernels);
        steps.end(Step::Attention);
        layer.attended.apply(out, Edge::Add, rows);
        steps.end(Step::Products);
        layer.attended_norm.apply(layer.kernels, rows);
        steps.end(Step::Norms);
    }

    fn widen(layer: &Layer<Self>, rows: &mut [f32], at: &mut Memory, steps: &mut Steps, between: &mut dyn FnMut()) {
        let count = rows.len() / layer.width();
        let sums = at.sums.first(rows.len());
        sums.copy_from_slice(rows);
        for Part { inner, outer } in &layer.wide {
            let columns = at.inner.first(count * inner.width());
            inner.apply(rows, Edge::Gelu, columns);
            outer.apply(columns, Edge::Add, sums);
            steps.end(Step::Products);
            between();
            steps.begin();
        }
        rows.copy_from_slice(sums);
        layer.wide_norm.apply(layer.kernels, rows);
        steps.end(Step::Norms);
    }

    fn inner(layer: &Layer<Self>, rows: &[f32], gelu: bool, at: &mut Memory) {
        let edge = if gelu { Edge::Gelu } else { Edge::Write };
        let count = rows.len() / layer.width();
        for Part { inner, .. } in &layer.wide {
            inner.apply(rows, edge, at.inner.first(count * inner.width()));
        }
    }
}
