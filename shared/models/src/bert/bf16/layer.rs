//! Layers in bf16: the rows are rounded before each part, and what is between the products of a part is in bf16 only.

use super::attention::{Attention, Scratch};
use super::lines::{Lines, lines_of};
use super::product::{Edge, Packed};
use super::{Kernel, Lay};
use crate::bert::aligned::Aligned;
use crate::bert::layer::{Kernels, Layer};
use crate::bert::steps::{Step, Steps};

/// Memory of one thread, kept from one call to the next.
#[derive(Debug, Default)]
pub(in crate::bert) struct Memory {
    rounded: Lines,
    qkv: Lines,
    attended: Lines,
    inner: Lines,
    sums: Aligned,
    scratch: Scratch,
}

impl Kernels for Kernel {
    type Packed = Packed;
    type Memory = Memory;

    fn pack(self, weights: &[f32], bias: &[f32]) -> Packed {
        Packed::new(self, weights, bias)
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

    fn attend(layer: &Layer<Self>, lengths: &[usize], rows: &mut [f32], at: &mut Memory, steps: &mut Steps) {
        let Memory { rounded, qkv, attended, sums, scratch, .. } = at;
        let (kernel, width, heads, head_width) = (layer.kernels, layer.width(), layer.heads, layer.head_width);
        let count = rows.len() / width;
        let left = rounded.first(lines_of(count, width));
        let (qkv, out) = (qkv.first(lines_of(count, 3 * width)), attended.first(lines_of(count, width)));
        kernel.dispatch(Lay { rows: &*rows, width, to: &mut *left });
        layer.qkv.apply(left, count, Edge::Write(&mut *qkv), sums);
        steps.end(Step::Products);
        Attention { kernel, qkv, lengths, heads, head_width, scratch, out: &mut *out }.run();
        steps.end(Step::Attention);
        layer.attended.apply(out, count, Edge::Add(&mut *rows), sums);
        steps.end(Step::Products);
        layer.attended_norm.apply(kernel.arch(), rows);
        steps.end(Step::Norms);
    }

    fn widen(layer: &Layer<Self>, rows: &mut [f32], at: &mut Memory, steps: &mut Steps) {
        Self::inner(layer, rows, true, at);
        let count = rows.len() / layer.width();
        let inner = at.inner.first(lines_of(count, layer.inner.width()));
        layer.outer.apply(inner, count, Edge::Add(&mut *rows), &mut at.sums);
        steps.end(Step::Products);
        layer.outer_norm.apply(layer.kernels.arch(), rows);
        steps.end(Step::Norms);
    }

    fn inner(layer: &Layer<Self>, rows: &[f32], gelu: bool, at: &mut Memory) {
        let width = layer.width();
        let count = rows.len() / width;
        let left = at.rounded.first(lines_of(count, width));
        layer.kernels.dispatch(Lay { rows, width, to: &mut *left });
        let inner = at.inner.first(lines_of(count, layer.inner.width()));
        let edge = if gelu { Edge::Gelu(inner) } else { Edge::Write(inner) };
        layer.inner.apply(left, count, edge, &mut at.sums);
    }
}
