//! The product of rows and weights. The weights lie packed into panels as wide as two vectors, in the order in which
//! the kernel reads them; what comes after a product (bias, GELU, adding to what is there) happens while a tile of the
//! result is still in registers.

use pulp::{Arch, Simd, WithSimd};

use super::aligned::Aligned;
use super::simd::{Tiles, gelu, load, rows, store};
use super::tile::{VECTORS, prefetch, tile};

/// Rows that pass over all panels before the next ones do: they and a panel fit into the second cache.
const BLOCK: usize = 96;

/// Weights and bias of a product.
pub(super) struct Packed {
    arch: Arch,
    /// Panel after panel: for each number of a row `lanes * VECTORS` weights. The last one ends with zeros.
    panels: Aligned,
    /// One for each column, then zeros.
    bias: Aligned,
    depth: usize,
    width: usize,
}

/// What a product does with what it computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edge {
    /// Writes it.
    Write,
    /// Writes its GELU.
    Gelu,
    /// Adds it to what is there.
    Add,
}

impl Packed {
    /// Of weights as BERT's files have them: for each column of the result as many numbers as a row has.
    pub fn new(arch: Arch, weights: &[f32], bias: &[f32]) -> Self {
        let (width, depth) = (bias.len(), weights.len() / bias.len().max(1));
        let panel = arch.dispatch(PanelWidth);
        let padded = width.next_multiple_of(panel);
        let mut panels = Aligned::zeroed(padded * depth);
        let slots = panels.first(padded * depth);
        for (column, weights) in weights.chunks_exact(depth).enumerate() {
            let slots = slots.iter_mut().skip(column / panel * panel * depth + column % panel).step_by(panel);
            slots.zip(weights).for_each(|(slot, weight)| *slot = *weight);
        }
        let mut padded_bias = Aligned::zeroed(padded);
        padded_bias.first(padded).iter_mut().zip(bias).for_each(|(slot, x)| *slot = *x);
        Self { arch, panels, bias: padded_bias, depth, width }
    }

    /// Numbers of a row of the result.
    pub fn width(&self) -> usize {
        self.width
    }

    /// rows * weights + bias, one row of `out` for each row.
    pub fn apply(&self, rows: &[f32], edge: Edge, out: &mut [f32]) {
        for (rows, out) in rows.chunks(BLOCK * self.depth).zip(out.chunks_mut(BLOCK * self.width)) {
            match edge {
                Edge::Write => self.arch.dispatch(Block::<Write> { weights: self, rows, out, edge: Write }),
                Edge::Gelu => self.arch.dispatch(Block::<Gelu> { weights: self, rows, out, edge: Gelu }),
                Edge::Add => self.arch.dispatch(Block::<Add> { weights: self, rows, out, edge: Add }),
            }
        }
    }
}

/// Numbers in a row of a panel.
struct PanelWidth;

impl WithSimd for PanelWidth {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        VECTORS * S::F32_LANES
    }
}

/// An edge, known to the compiler.
pub(super) trait AtEdge: Copy {
    /// What is written for sums, bias included, over what is there.
    fn end<S: Simd>(self, simd: S, sums: Pair<S>, there: Pair<S>) -> Pair<S>;
}

pub(super) type Pair<S> = [<S as Simd>::f32s; VECTORS];

#[derive(Clone, Copy)]
pub(super) struct Write;
#[derive(Clone, Copy)]
struct Gelu;
#[derive(Clone, Copy)]
pub(super) struct Add;

impl AtEdge for Write {
    #[inline(always)]
    fn end<S: Simd>(self, _: S, sums: Pair<S>, _: Pair<S>) -> Pair<S> {
        sums
    }
}

impl AtEdge for Gelu {
    #[inline(always)]
    fn end<S: Simd>(self, simd: S, [a, b]: Pair<S>, _: Pair<S>) -> Pair<S> {
        [gelu(simd, a), gelu(simd, b)]
    }
}

impl AtEdge for Add {
    #[inline(always)]
    fn end<S: Simd>(self, simd: S, sums: Pair<S>, there: Pair<S>) -> Pair<S> {
        [simd.add_f32s(sums[0], there[0]), simd.add_f32s(sums[1], there[1])]
    }
}

/// Some rows times all panels.
struct Block<'a, E> {
    weights: &'a Packed,
    rows: &'a [f32],
    out: &'a mut [f32],
    edge: E,
}

impl<E: AtEdge> WithSimd for Block<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Packed { panels, bias, depth, width, .. } = self.weights;
        let (depth, width, panel_width) = (*depth, *width, VECTORS * S::F32_LANES);
        let biases = S::as_simd_f32s(bias.all()).0.as_chunks::<VECTORS>().0;
        let count = self.rows.len() / depth;
        let mut panels = panels.all().chunks_exact(depth * panel_width).take(width.div_ceil(panel_width)).peekable();
        let mut from = 0;
        for bias in biases {
            let Some(panel) = panels.next() else { break };
            let panel = Panel {
                simd,
                panel: S::as_simd_f32s(panel).0.as_chunks().0,
                next: panels.peek().copied().unwrap_or(&[]),
                bias: *bias,
                depth,
                width,
                from,
                edge: self.edge,
                rows: self.rows,
                count,
                out: &mut *self.out,
            };
            panel.all::<S>(count);
            from += panel_width;
        }
    }
}

/// Rows times one panel.
struct Panel<'a, S: Simd, E> {
    simd: S,
    panel: &'a [[S::f32s; VECTORS]],
    /// The one after it.
    next: &'a [f32],
    bias: [S::f32s; VECTORS],
    depth: usize,
    width: usize,
    /// Its first column.
    from: usize,
    edge: E,
    rows: &'a [f32],
    /// How many.
    count: usize,
    out: &'a mut [f32],
}

impl<S: Simd, E: AtEdge> Tiles for Panel<'_, S, E> {
    #[inline(always)]
    fn tile<const M: usize>(&mut self, first: usize) {
        let (from, to) = (self.from, (self.from + VECTORS * S::F32_LANES).min(self.width));
        // The next panel comes while this one is in work: a part of it with each tile.
        let part = |row: usize| self.next.len() * row / self.count;
        prefetch(self.next.get(part(first)..part(first + M)).unwrap_or(&[]));
        let rows = rows::<M>(self.rows, self.depth, first, 0, self.depth);
        let sums = tile::<S, M>(self.simd, rows, self.panel);
        for (row, sums) in sums.iter().enumerate() {
            let there = load(self.simd, self.out, self.width, first + row, from, to);
            let sums = [self.simd.add_f32s(sums[0], self.bias[0]), self.simd.add_f32s(sums[1], self.bias[1])];
            store::<S>(self.out, self.width, first + row, from, to, self.edge.end(self.simd, sums, there));
        }
    }
}

#[cfg(test)]
#[allow(clippy::cast_precision_loss)]
mod tests {
    use proptest::prelude::*;

    use super::super::simd::tests::{arches, cases, exact_gelu, numbers, sizes};
    use super::*;

    /// In double precision, one number after another.
    fn plain(rows: &[f32], weights: &[f32], bias: &[f32], edge: Edge, there: &[f32]) -> Vec<f64> {
        let depth = weights.len() / bias.len();
        let mut there = there.iter();
        let mut results = Vec::new();
        for row in rows.chunks_exact(depth) {
            for (weights, bias) in weights.chunks_exact(depth).zip(bias) {
                let products = row.iter().zip(weights).map(|(a, b)| f64::from(*a) * f64::from(*b));
                let sum = products.sum::<f64>() + f64::from(*bias);
                let there = there.next().copied().map_or(0.0, f64::from);
                results.push(match edge {
                    Edge::Write => sum,
                    Edge::Gelu => exact_gelu(sum),
                    Edge::Add => sum + there,
                });
            }
        }
        results
    }

    proptest! {
        #![proptest_config(cases(48))]

        #[test]
        fn products_are_those_of_plain_sums_for_any_shape(
            rows in sizes(0..230),
            depth in 1..70usize,
            columns in sizes(1..8),
            seed in any::<u32>(),
        ) {
            let width = 16 * columns;
            let mut random = numbers(seed);
            let mut some = |count: usize| -> Vec<f32> { random.by_ref().take(count).collect() };
            let (x, weights, bias, there) = (some(rows * depth), some(width * depth), some(width), some(rows * width));
            for arch in arches() {
                let packed = Packed::new(arch, &weights, &bias);
                for edge in [Edge::Write, Edge::Gelu, Edge::Add] {
                    let mut out = there.clone();
                    packed.apply(&x, edge, &mut out);
                    for (ours, exact) in out.iter().zip(plain(&x, &weights, &bias, edge, &there)) {
                        prop_assert!((f64::from(*ours) - exact).abs() < 2e-5, "{arch:?} {edge:?}: {ours} is not {exact}");
                    }
                }
            }
        }
    }
}
