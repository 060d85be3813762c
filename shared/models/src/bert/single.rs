//! Layers in single precision.

use pulp::Arch;

use super::aligned::Aligned;
use super::attention::{Attention, Scratch};
use super::layer::{Kernels, Layer};
use super::product::{Edge, Packed};
use super::steps::{Step, Steps};

/// Memory of one thread, kept from one call to the next.
#[derive(Debug, Default)]
pub(super) struct Memory {
    qkv: Aligned,
    attended: Aligned,
    inner: Aligned,
    scratch: Scratch,
}

impl Kernels for Arch {
    type Packed = Packed;
    type Memory = Memory;

    fn pack(self, weights: &[f32], bias: &[f32]) -> Packed {
        Packed::new(self, weights, bias)
    }

    fn attended_rows(self) -> usize {
        96
    }

    /// A multiple of all tiles' heights.
    fn inner_rows(self) -> usize {
        48
    }

    fn attend(layer: &Layer<Self>, lengths: &[usize], rows: &mut [f32], at: &mut Memory, steps: &mut Steps) {
        let Memory { qkv, attended, scratch, .. } = at;
        let (heads, head_width) = (layer.heads, layer.head_width);
        let (qkv, out) = (qkv.first(3 * rows.len()), attended.first(rows.len()));
        layer.qkv.apply(rows, Edge::Write, qkv);
        steps.end(Step::Products);
        Attention { qkv, lengths, heads, head_width, scratch, out }.run(layer.kernels);
        steps.end(Step::Attention);
        layer.attended.apply(out, Edge::Add, rows);
        steps.end(Step::Products);
        layer.attended_norm.apply(layer.kernels, rows);
        steps.end(Step::Norms);
    }

    fn widen(layer: &Layer<Self>, rows: &mut [f32], at: &mut Memory, steps: &mut Steps) {
        let inner = at.inner.first(rows.len() / layer.width() * layer.inner.width());
        layer.inner.apply(rows, Edge::Gelu, inner);
        layer.outer.apply(inner, Edge::Add, rows);
        steps.end(Step::Products);
        layer.outer_norm.apply(layer.kernels, rows);
        steps.end(Step::Norms);
    }

    fn inner(layer: &Layer<Self>, rows: &[f32], gelu: bool, at: &mut Memory) {
        let edge = if gelu { Edge::Gelu } else { Edge::Write };
        layer.inner.apply(rows, edge, at.inner.first(rows.len() / layer.width() * layer.inner.width()));
    }
}
