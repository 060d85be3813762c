//! Layers in bf16: the rows are rounded before each part, and what is between the products of a part is in bf16 only.

use super::attention::{Attention, Scratch};
use super::lines::{BLOCK, lines_of};
use super::product::{Edge, Packed};
use super::{Kernel, Lay};
use crate::bert::aligned::Aligned;
use crate::bert::layer::{Kernels, Layer, Linear, Sequences, put};
use crate::bert::lines::Lines;
use crate::bert::steps::{Step, Steps};

/// Memory of one thread, kept from one call to the next.
#[derive(Debug, Default)]
pub(in crate::bert) struct Memory {
    rounded: Lines,
    attended: Lines,
    inner: Lines,
    sums: Aligned,
    scratch: Scratch,
}

impl Kernels for Kernel {
    type Packed = Packed;
    /// One after the other.
    type Wide = [Packed; 2];
    type Qkv = Lines;
    type Memory = Memory;

    fn pack(self, weights: &[f32], bias: &[f32]) -> Packed {
        Packed::new(self, weights, bias)
    }

    fn pack_wide(self, inner: Linear, outer: Linear) -> [Packed; 2] {
        [inner, outer].map(|linear| Packed::new(self, &linear.weights, &linear.bias))
    }

    /// As many as a task usually has where the weights come slower than they are used.
    fn attended_rows(self) -> usize {
        if self.is_tiled() { 256 } else { 96 }
    }

    fn inner_rows(self) -> usize {
        match self {
            _ if self.is_tiled() => 256,
            Self::Widening(_) => 64,
            #[cfg(target_arch = "x86_64")]
            _ => 96,
        }
    }

    fn step(self) -> usize {
        BLOCK
    }

    fn project(layer: &Layer<Self>, rows: &[f32], qkv: &mut Lines, at: &mut Memory, steps: &mut Steps) {
        let (width, count) = (layer.width(), rows.len() / layer.width());
        let left = at.rounded.first(lines_of(count, width));
        layer.kernels.dispatch(Lay { rows, width, to: &mut *left });
        layer.qkv.apply(left, count, Edge::Write(qkv.first(lines_of(count, 3 * width))), &mut at.sums);
        steps.end(Step::Products);
    }

    fn put(layer: &Layer<Self>, part: &Lines, rows: usize, after: usize, all: &mut Lines) {
        let lines = |rows| lines_of(rows, 3 * layer.width());
        put(part.all(), lines(rows), lines(after), all.first(lines(after) + lines(rows)));
    }

    fn attend(layer: &Layer<Self>, of: Sequences<'_, Self>, rows: &mut [f32], at: &mut Memory, steps: &mut Steps) {
        let Memory { attended, sums, scratch, .. } = at;
        let (kernel, width, heads, head_width) = (layer.kernels, layer.width(), layer.heads, layer.head_width);
        let count = rows.len() / width;
        let out = attended.first(lines_of(count, width));
        let Sequences { qkv, lengths, first } = of;
        Attention { kernel, qkv: qkv.all(), lengths, first, count, heads, head_width, scratch, out: &mut *out }.run();
        steps.end(Step::Attention);
        layer.attended.apply(out, count, Edge::Add(&mut *rows), sums);
        steps.end(Step::Products);
        layer.attended_norm.apply(kernel.arch(), rows);
        steps.end(Step::Norms);
    }

    fn widen(layer: &Layer<Self>, rows: &mut [f32], at: &mut Memory, steps: &mut Steps, _: &mut dyn FnMut()) {
        Self::inner(layer, rows, true, at);
        let count = rows.len() / layer.width();
        let [inner, outer] = &layer.wide;
        let between = at.inner.first(lines_of(count, inner.width()));
        outer.apply(between, count, Edge::Add(&mut *rows), &mut at.sums);
        steps.end(Step::Products);
        layer.wide_norm.apply(layer.kernels.arch(), rows);
        steps.end(Step::Norms);
    }

    fn inner(layer: &Layer<Self>, rows: &[f32], gelu: bool, at: &mut Memory) {
        let width = layer.width();
        let count = rows.len() / width;
        let left = at.rounded.first(lines_of(count, width));
        layer.kernels.dispatch(Lay { rows, width, to: &mut *left });
        let [inner, _] = &layer.wide;
        let between = at.inner.first(lines_of(count, inner.width()));
        let edge = if gelu { Edge::Gelu(between) } else { Edge::Write(between) };
        inner.apply(left, count, edge, &mut at.sums);
    }
}
