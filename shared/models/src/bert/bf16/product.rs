//! The product of rows and weights in bf16. The weights lie packed into panels of 32 columns, pairs of their rows beside
//! each other, as all kernels read them; what comes after a product (bias, GELU, adding to what is there) happens tile by
//! tile, while the sums are in the first cache.

use pulp::Simd;
use pulp::bytemuck::cast;

use super::lines::{BLOCK, PAIRS, STEP, line_of, round};
use super::{Engine, Kernel, OnVectors, PANEL_STEP, Product, Rounding, TILE_COLUMNS, TILE_ROWS};
use crate::bert::aligned::Aligned;
use crate::bert::approximate::gelu;
use crate::bert::lines::Line;
use crate::bert::tile::prefetch;

/// Weights and bias of a product.
pub(in crate::bert) struct Packed {
    kernel: Kernel,
    /// Panel after panel: `PANEL_STEP` lines for every 32 numbers of a row. Rows and columns end with zeros.
    panels: Vec<Line>,
    /// One for each column, then zeros.
    bias: Vec<[f32; TILE_COLUMNS]>,
    /// Lines of a row.
    steps: usize,
    width: usize,
}

/// What becomes of a product.
pub(super) enum Edge<'a> {
    /// It is written, rounded.
    Write(&'a mut [Line]),
    /// Its GELU is written, rounded.
    Gelu(&'a mut [Line]),
    /// It is added to rows in single precision.
    Add(&'a mut [f32]),
}

impl Packed {
    /// Of weights as BERT's files have them: for each column of the result as many numbers as a row has.
    pub(super) fn new(kernel: Kernel, weights: &[f32], bias: &[f32]) -> Self {
        let (width, depth) = (bias.len(), weights.len() / bias.len().max(1));
        let steps = depth.div_ceil(STEP);
        let mut panels = vec![Line::default(); width.div_ceil(TILE_COLUMNS) * steps * PANEL_STEP];
        for (column, weights) in weights.chunks_exact(depth).enumerate() {
            let (panel, half) = (column / TILE_COLUMNS, column % TILE_COLUMNS / PAIRS);
            for (place, pair) in weights.chunks(2).enumerate() {
                let [first, second] = [0, 1].map(|place| pair.get(place).map_or(0, |x| round(*x)));
                let line = (panel * steps + place / PAIRS) * PANEL_STEP + half * PAIRS + place % PAIRS;
                let slot = panels.get_mut(line).and_then(|line| line.0.get_mut(column % PAIRS));
                if let Some(slot) = slot {
                    *slot = cast([first, second]);
                }
            }
        }
        let mut padded_bias = vec![[0.0; TILE_COLUMNS]; width.div_ceil(TILE_COLUMNS)];
        padded_bias.as_flattened_mut().iter_mut().zip(bias).for_each(|(slot, x)| *slot = *x);
        Self { kernel, panels, bias: padded_bias, steps, width }
    }

    /// Numbers of a row of the result.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// rows * weights + bias for the first `count` rows of `left`.
    pub(super) fn apply(&self, left: &[Line], count: usize, edge: Edge<'_>, sums: &mut Aligned) {
        let engine = self.kernel.start();
        match edge {
            Edge::Write(out) => {
                let steps = self.width.div_ceil(STEP);
                self.tiles(&engine, left, count, sums, |tile| {
                    self.kernel.dispatch(Rounded::<false> { tile, steps, out })
                });
            }
            Edge::Gelu(out) => {
                let steps = self.width.div_ceil(STEP);
                self.tiles(&engine, left, count, sums, |tile| {
                    self.kernel.dispatch(Rounded::<true> { tile, steps, out })
                });
            }
            Edge::Add(out) => {
                let width = self.width;
                self.tiles(&engine, left, count, sums, |tile| self.kernel.dispatch(Added { tile, width, out }));
            }
        }
    }

    /// Computes tile after tile, all rows of a panel before the next one's.
    #[inline(always)]
    fn tiles(&self, engine: &Engine, left: &[Line], count: usize, sums: &mut Aligned, mut each: impl FnMut(Tile<'_>)) {
        let sums = sums.first(TILE_ROWS * TILE_COLUMNS);
        let mut panels = self.panels.chunks_exact(self.steps * PANEL_STEP).peekable();
        let tiles = count.div_ceil(TILE_ROWS).max(1);
        for (place, bias) in self.bias.iter().enumerate() {
            let Some(panel) = panels.next() else { break };
            let next = panels.peek().copied().unwrap_or(&[]);
            let mut nexts = next.chunks(next.len().div_ceil(tiles).max(1));
            for (left, first) in left.chunks(TILE_ROWS * self.steps).zip((0..count).step_by(TILE_ROWS)) {
                // The next panel comes while this one is in work: a part of it with each tile.
                prefetch(nexts.next().unwrap_or(&[]));
                let rows = TILE_ROWS.min(count - first);
                engine.multiply(Product { left, rows, steps: self.steps, panels: panel, sums: &mut *sums });
                each(Tile { sums, rows, first, place, bias });
            }
        }
    }
}

/// Some rows of a panel's sums.
struct Tile<'a> {
    sums: &'a [f32],
    rows: usize,
    /// Which row of the result its first one is.
    first: usize,
    /// Which panel.
    place: usize,
    bias: &'a [f32; TILE_COLUMNS],
}

/// Writes a tile, or its GELU, rounded.
struct Rounded<'a, const GELU: bool> {
    tile: Tile<'a>,
    /// Lines of a row of the result.
    steps: usize,
    out: &'a mut [Line],
}

impl<const GELU: bool> OnVectors for Rounded<'_, GELU> {
    #[inline(always)]
    fn run<S: Simd, R: Rounding>(self, simd: S, rounding: R) {
        let Tile { sums, rows, first, place, bias } = self.tile;
        let bias = S::as_simd_f32s(bias).0;
        let (first, blocks) = (line_of(first, place, self.steps), sums.as_chunks::<TILE_COLUMNS>().0);
        let slots = self.out.get_mut(first..).unwrap_or(&mut []).chunks_mut(BLOCK * self.steps);
        for (sums, slots) in blocks.get(..rows).unwrap_or(blocks).chunks(BLOCK).zip(slots) {
            for (sums, slot) in sums.iter().zip(slots) {
                let mut numbers = *sums;
                for (x, bias) in S::as_mut_simd_f32s(&mut numbers).0.iter_mut().zip(bias) {
                    *x = simd.add_f32s(*x, *bias);
                    if GELU {
                        *x = gelu(simd, *x);
                    }
                }
                *slot = rounding.line(&numbers);
            }
        }
    }
}

/// Adds a tile to what is there.
struct Added<'a> {
    tile: Tile<'a>,
    /// Numbers of a row of the result: a multiple of 16.
    width: usize,
    out: &'a mut [f32],
}

impl OnVectors for Added<'_> {
    #[inline(always)]
    fn run<S: Simd, R: Rounding>(self, simd: S, _: R) {
        let Tile { sums, rows, first, place, bias } = self.tile;
        let bias = S::as_simd_f32s(bias).0;
        let from = place * TILE_COLUMNS;
        let to = (from + TILE_COLUMNS).min(self.width);
        let slots = self.out.chunks_exact_mut(self.width).skip(first);
        for (sums, slots) in sums.as_chunks::<TILE_COLUMNS>().0.iter().take(rows).zip(slots) {
            let slots = S::as_mut_simd_f32s(slots.get_mut(from..to).unwrap_or(&mut [])).0;
            for ((slot, x), bias) in slots.iter_mut().zip(S::as_simd_f32s(sums).0).zip(bias) {
                *slot = simd.add_f32s(*slot, simd.add_f32s(*x, *bias));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::cast_precision_loss)]
mod tests {
    use proptest::prelude::*;

    use super::super::lines::lines_of;
    use super::super::lines::tests::{at, exact, lines};
    use super::*;
    use crate::bert::lines::Lines;
    use crate::bert::simd::tests::{cases, exact_gelu, numbers, sizes};

    /// In double precision, one number after another, of what the numbers are after rounding.
    fn plain(rows: &[f32], weights: &[f32], bias: &[f32]) -> Vec<f64> {
        let depth = weights.len() / bias.len();
        let rounded = |numbers: &[f32]| -> Vec<f64> { numbers.iter().map(|x| exact(round(*x)).into()).collect() };
        let (rows, weights) = (rounded(rows), rounded(weights));
        let product = |row: &[f64], (weights, bias): (&[f64], &f32)| {
            row.iter().zip(weights).map(|(a, b)| a * b).sum::<f64>() + f64::from(*bias)
        };
        let columns = || weights.chunks_exact(depth).zip(bias);
        rows.chunks_exact(depth).flat_map(|row| columns().map(|column| product(row, column))).collect()
    }

    /// Half a step of bf16 from a number at most, and what single precision and the approximations add.
    fn is_near(ours: f32, exact: f64, also: f64) -> bool {
        (f64::from(ours) - exact).abs() <= exact.abs() / 256.0 + also
    }

    proptest! {
        #![proptest_config(cases(48))]

        #[test]
        fn products_are_those_of_plain_sums_for_any_shape_and_kernel(
            rows in sizes(0..71),
            depth in 1..100usize,
            columns in sizes(1..8),
            seed in any::<u32>(),
        ) {
            let width = 16 * columns;
            let mut random = numbers(seed);
            let mut some = |count: usize| -> Vec<f32> { random.by_ref().take(count).collect() };
            let (x, weights, bias, there) = (some(rows * depth), some(width * depth), some(width), some(rows * width));
            let (left, products) = (lines(&x, depth), plain(&x, &weights, &bias));
            for kernel in Kernel::of_this_processor() {
                let packed = Packed::new(kernel, &weights, &bias);
                let mut sums = Aligned::default();
                // What was there before must not matter.
                sums.first(TILE_ROWS * TILE_COLUMNS).fill(f32::NAN);
                let mut added = there.clone();
                packed.apply(&left, rows, Edge::Add(&mut added), &mut sums);
                for ((ours, there), product) in added.iter().zip(&there).zip(&products) {
                    let exact = product + f64::from(*there);
                    prop_assert!((f64::from(*ours) - exact).abs() < 5e-5, "{kernel:?}: {ours} is not {exact}");
                }
                for with_gelu in [false, true] {
                    let mut out = Lines::default();
                    let out = out.first(lines_of(rows, width));
                    let edge = if with_gelu { Edge::Gelu(&mut *out) } else { Edge::Write(&mut *out) };
                    packed.apply(&left, rows, edge, &mut sums);
                    for (place, product) in products.iter().enumerate() {
                        let ours = at(out, width, place / width, place % width);
                        let exact = if with_gelu { exact_gelu(*product) } else { *product };
                        prop_assert!(is_near(ours, exact, 3e-4), "{kernel:?}: {ours} is not {exact}");
                    }
                    // Nothing but the rows that there are is written, and what fills a line up is zero.
                    let slots = (0..out.len() / width.div_ceil(STEP)).flat_map(|row| (0..width.next_multiple_of(STEP)).map(move |column| (row, column)));
                    for (row, column) in slots.filter(|(row, column)| *row >= rows || *column >= width) {
                        let written = at(out, width, row, column);
                        prop_assert!(written == 0.0, "{kernel:?}: {written} at row {row} and column {column}");
                    }
                }
            }
        }

        #[test]
        fn rows_are_laid_as_plain_code_does_it(rows in sizes(0..40), blocks in sizes(1..8), seed in any::<u32>()) {
            let width = 16 * blocks;
            let x: Vec<f32> = numbers(seed).take(rows * width).collect();
            for kernel in Kernel::of_this_processor() {
                let mut ours = vec![Line::default(); lines_of(rows, width)];
                kernel.dispatch(super::super::Lay { rows: &x, width, to: &mut ours });
                prop_assert_eq!(&ours, &lines(&x, width), "{:?}", kernel);
            }
        }
    }
}
