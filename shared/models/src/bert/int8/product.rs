//! The product of rows and weights in whole numbers. The weights lie packed into panels of 32 columns, four of their rows
//! beside each other, as all kernels read them; what comes after a product (scales, bias, GELU, adding to what is there)
//! happens tile by tile, while the sums are in the first cache.

use pulp::{Simd, WithSimd};

use super::quantised::{Columns, Quantised, Range, Scales};
use super::{Kernel, PANEL_STEP, Product, TILE_COLUMNS, TILE_ROWS};
use crate::bert::aligned::Aligned;
use crate::bert::approximate::gelu;
use crate::bert::product::{Add, AtEdge, Edge, Pair, Write};
use crate::bert::simd::{load, store};
use crate::bert::tile::{VECTORS, prefetch};

/// Weights and bias of a product.
pub(in crate::bert) struct Packed {
    kernel: Kernel,
    columns: Columns,
    /// One for each column, then zeros.
    bias: Vec<[f32; TILE_COLUMNS]>,
    /// Lines of a row.
    steps: usize,
    width: usize,
}

impl Packed {
    /// Of weights as BERT's files have them: for each column of the result as many numbers as a row has.
    pub(super) fn new(kernel: Kernel, weights: &[f32], bias: &[f32]) -> Self {
        let (width, depth) = (bias.len(), weights.len() / bias.len().max(1));
        let columns = Columns::quantise(weights, depth);
        let mut padded = vec![[0.0; TILE_COLUMNS]; columns.scales.len()];
        padded.as_flattened_mut().iter_mut().zip(bias).for_each(|(slot, x)| *slot = *x);
        Self { kernel, columns, bias: padded, steps: depth.div_ceil(super::STEP), width }
    }

    /// Numbers of a row of the result.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// rows * weights + bias, one row of `out` for each row.
    pub(super) fn apply(&self, rows: &Quantised, edge: Edge, out: &mut [f32], sums: &mut Aligned) {
        match edge {
            Edge::Write => self.tiles(rows, Write, out, sums),
            Edge::Gelu => self.tiles(rows, NearlyGelu, out, sums),
            Edge::Add => self.tiles(rows, Add, out, sums),
        }
    }

    /// Computes tile after tile, all rows of a panel before the next one's.
    #[inline(always)]
    fn tiles<E: AtEdge>(&self, rows: &Quantised, edge: E, out: &mut [f32], sums: &mut Aligned) {
        debug_assert_eq!(rows.steps(), self.steps, "rows are as wide as weights are deep");
        let engine = self.kernel.start();
        let sums = sums.first(TILE_ROWS * TILE_COLUMNS);
        let mut panels = self.columns.panels.chunks_exact(self.steps * PANEL_STEP).peekable();
        let tiles = rows.tiles().count().max(1);
        for (place, (scales, bias)) in self.columns.scales.iter().zip(&self.bias).enumerate() {
            let Some(panel) = panels.next() else { break };
            let next = panels.peek().copied().unwrap_or(&[]);
            let mut nexts = next.chunks(next.len().div_ceil(tiles).max(1));
            let outs = out.chunks_mut(TILE_ROWS * self.width);
            for ((ranges, left), out) in rows.tiles().zip(outs) {
                // The next panel comes while this one is in work: a part of it with each tile.
                prefetch(nexts.next().unwrap_or(&[]));
                engine.multiply(Product { left, rows: ranges.len(), panel, sums: &mut *sums });
                let from = place * TILE_COLUMNS;
                let ended = Ended { sums, ranges, scales, bias, from, width: self.width, out, edge };
                self.kernel.arch().dispatch(ended);
            }
        }
    }
}

/// GELU as exact as what comes after it.
#[derive(Clone, Copy)]
struct NearlyGelu;

impl AtEdge for NearlyGelu {
    #[inline(always)]
    fn end<S: Simd>(self, simd: S, [a, b]: Pair<S>, _: Pair<S>) -> Pair<S> {
        [gelu(simd, a), gelu(simd, b)]
    }
}

/// A tile of sums, and what becomes of it.
struct Ended<'a, E> {
    sums: &'a [f32],
    /// Of each row that there is.
    ranges: &'a [Range],
    scales: &'a Scales,
    bias: &'a [f32; TILE_COLUMNS],
    /// The first column of the result.
    from: usize,
    /// Numbers of a row of the result.
    width: usize,
    out: &'a mut [f32],
    edge: E,
}

impl<E: AtEdge> WithSimd for Ended<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { sums, ranges, scales, bias, from, width, out, edge } = self;
        let [scale, of_all, bias] = [&scales.scale, &scales.sum, bias].map(|numbers| S::as_simd_f32s(numbers).0);
        let (scale, of_all, bias) = (pairs::<S>(scale), pairs::<S>(of_all), pairs::<S>(bias));
        let end = (from + TILE_COLUMNS).min(width);
        for (row, (sums, range)) in sums.as_chunks::<TILE_COLUMNS>().0.iter().zip(ranges).enumerate() {
            let (row_scale, below) = (simd.splat_f32s(range.scale), simd.splat_f32s(-range.zero));
            let columns = (from..end).step_by(VECTORS * S::F32_LANES);
            let of_columns = scale.iter().zip(of_all).zip(bias);
            for ((from, sums), ((scale, of_all), bias)) in
                columns.zip(pairs::<S>(S::as_simd_f32s(sums).0)).zip(of_columns)
            {
                let to = (from + VECTORS * S::F32_LANES).min(end);
                // Each number of the row is `zero` too great, and so is the sum by that of all weights.
                let mut whole = *sums;
                for (((sum, scale), of_all), bias) in whole.iter_mut().zip(scale).zip(of_all).zip(bias) {
                    let scaled = simd.mul_add_e_f32s(below, *of_all, simd.mul_f32s(*sum, *scale));
                    *sum = simd.mul_add_e_f32s(row_scale, scaled, *bias);
                }
                let there = load(simd, out, width, row, from, to);
                store::<S>(out, width, row, from, to, edge.end(simd, whole, there));
            }
        }
    }
}

#[inline(always)]
fn pairs<S: Simd>(vectors: &[S::f32s]) -> &[[S::f32s; VECTORS]] {
    vectors.as_chunks().0
}

#[cfg(test)]
#[allow(clippy::cast_precision_loss)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bert::simd::tests::{cases, exact_gelu, numbers, sizes};

    proptest! {
        #![proptest_config(cases(48))]

        #[test]
        fn products_are_those_of_plain_sums_for_any_shape_and_the_same_with_every_kernel(
            rows in sizes(0..71),
            depth in 1..200usize,
            columns in sizes(1..8),
            seed in any::<u32>(),
        ) {
            let width = 16 * columns;
            let mut random = numbers(seed);
            let mut some = |count: usize| -> Vec<f32> { random.by_ref().take(count).collect() };
            let (x, weights, bias, there) = (some(rows * depth), some(width * depth), some(width), some(rows * width));
            let mut left = Quantised::default();
            left.take(pulp::Arch::Scalar, &x, depth);
            let packed = Columns::quantise(&weights, depth);
            let steps = depth.div_ceil(super::super::STEP);
            let weights_of = |column: usize| -> Vec<f64> {
                let scale = packed.scales.get(column / TILE_COLUMNS).unwrap().scale;
                let scale = f64::from(*scale.get(column % TILE_COLUMNS).unwrap());
                (0..depth).map(|place| f64::from(packed.number(steps, place, column)) * scale).collect()
            };
            let stood_for: Vec<Vec<f64>> = (0..width).map(weights_of).collect();
            let mut exact = Vec::new();
            for row in 0..rows {
                let row: Vec<f64> = (0..depth).map(|place| left.at(row, place)).collect();
                exact.extend(stood_for.iter().map(|weights| row.iter().zip(weights).map(|(x, y)| x * y).sum::<f64>()));
            }
            let kernels = Kernel::of_this_processor().into_iter();
            let kernels: Vec<_> = kernels.map(|kernel| (kernel, Packed::new(kernel, &weights, &bias))).collect();
            for edge in [Edge::Write, Edge::Gelu, Edge::Add] {
                let mut first: Option<Vec<f32>> = None;
                for (kernel, packed) in &kernels {
                    let mut sums = Aligned::default();
                    // What was there before must not matter.
                    sums.first(TILE_ROWS * TILE_COLUMNS).fill(f32::NAN);
                    let mut ours = there.clone();
                    packed.apply(&left, edge, &mut ours, &mut sums);
                    for (((place, ours), product), there) in ours.iter().enumerate().zip(&exact).zip(&there) {
                        let sum = product + f64::from(*bias.get(place % width).unwrap());
                        let wanted = match edge {
                            Edge::Write => sum,
                            Edge::Gelu => exact_gelu(sum),
                            Edge::Add => sum + f64::from(*there),
                        };
                        let allowed = if edge == Edge::Gelu { 3e-4 } else { 5e-5 };
                        prop_assert!((f64::from(*ours) - wanted).abs() < allowed, "{kernel:?} {edge:?}: {ours} is not {wanted}");
                    }
                    // Those without fused additions round once more.
                    match &first {
                        Some(first) if !matches!(kernel, Kernel::Plain(_)) => prop_assert_eq!(&ours, first, "{:?}", kernel),
                        _ => first = Some(ours),
                    }
                }
            }
        }
    }
}
