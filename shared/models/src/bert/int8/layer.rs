//! Layers in whole numbers of eight bits: what a product takes is quantised right before it.

use super::Kernel;
use super::product::Packed;
use super::quantised::Quantised;
use crate::bert::aligned::Aligned;
use crate::bert::attention::{Attention, Scratch};
use crate::bert::layer::{Kernels, Layer, Linear, Sequences, parts, put};
use crate::bert::product::Edge;
use crate::bert::steps::{Step, Steps};

/// Memory of one thread, kept from one call to the next.
#[derive(Debug, Default)]
pub(in crate::bert) struct Memory {
    quantised: Quantised,
    attended: Aligned,
    inner: Aligned,
    inner_quantised: Quantised,
    sums: Aligned,
    scratch: Scratch,
}

/// A part of the inner layer: the product that makes some of its columns, and what they add to the row.
pub(in crate::bert) struct Part {
    inner: Packed,
    outer: Packed,
}

/// Columns of the inner layer in a part: so many of a row have a scale of their own, and stay in the second cache.
const PART: usize = 384;

impl Kernels for Kernel {
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

    fn inner_rows(self) -> usize {
        96
    }

    /// A multiple of all tiles' heights but that of AMX, which is computed whole for any number of rows.
    fn step(self) -> usize {
        8
    }

    fn project(layer: &Layer<Self>, rows: &[f32], qkv: &mut Aligned, at: &mut Memory, steps: &mut Steps) {
        at.quantised.take(layer.kernels.arch(), rows, layer.width());
        layer.qkv.apply(&at.quantised, Edge::Write, qkv.first(3 * rows.len()), &mut at.sums);
        steps.end(Step::Products);
    }

    fn put(layer: &Layer<Self>, part: &Aligned, rows: usize, after: usize, all: &mut Aligned) {
        let width = 3 * layer.width();
        put(part.all(), rows * width, after * width, all.first((after + rows) * width));
    }

    fn attend(layer: &Layer<Self>, of: Sequences<'_, Self>, rows: &mut [f32], at: &mut Memory, steps: &mut Steps) {
        let Memory { quantised, attended, sums, scratch, .. } = at;
        let (arch, heads, head_width) = (layer.kernels.arch(), layer.heads, layer.head_width);
        let Sequences { qkv, lengths, first } = of;
        let out = attended.first(rows.len());
        let (qkv, rounded) = (qkv.all(), true);
        Attention { qkv, lengths, first, heads, head_width, rounded, scratch, out: &mut *out }.run(arch);
        steps.end(Step::Attention);
        quantised.take(arch, out, layer.width());
        layer.attended.apply(quantised, Edge::Add, rows, sums);
        steps.end(Step::Products);
        layer.attended_norm.apply(arch, rows);
        steps.end(Step::Norms);
    }

    fn widen(layer: &Layer<Self>, rows: &mut [f32], at: &mut Memory, steps: &mut Steps, between: &mut dyn FnMut()) {
        let (arch, count) = (layer.kernels.arch(), rows.len() / layer.width());
        let Memory { quantised, inner: columns, inner_quantised, sums, .. } = at;
        quantised.take(arch, rows, layer.width());
        for Part { inner, outer } in &layer.wide {
            let columns = columns.first(count * inner.width());
            inner.apply(quantised, Edge::Gelu, columns, sums);
            inner_quantised.take(arch, columns, inner.width());
            outer.apply(inner_quantised, Edge::Add, rows, sums);
            steps.end(Step::Products);
            between();
            steps.begin();
        }
        layer.wide_norm.apply(arch, rows);
        steps.end(Step::Norms);
    }

    fn inner(layer: &Layer<Self>, rows: &[f32], gelu: bool, at: &mut Memory) {
        let edge = if gelu { Edge::Gelu } else { Edge::Write };
        let count = rows.len() / layer.width();
        at.quantised.take(layer.kernels.arch(), rows, layer.width());
        for Part { inner, .. } in &layer.wide {
            inner.apply(&at.quantised, edge, at.inner.first(count * inner.width()), &mut at.sums);
        }
    }
}
