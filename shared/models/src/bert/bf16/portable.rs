//! Products of bf16 on any processor: widened to single precision on the way into the registers.

use pulp::{Arch, Simd, WithSimd};

use super::lines::{BLOCK, PAIRS, line_of};
use super::{PANEL_STEP, Product, TILE_COLUMNS};
use crate::bert::lines::Line;
use crate::bert::simd::Tiles;
use crate::bert::tile::VECTORS;

/// sums = left * panels.
pub(super) fn multiply(arch: Arch, product: Product<'_>) {
    arch.dispatch(product);
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { left, rows, steps, panels, sums } = self;
        let panels = panels.chunks_exact(steps * PANEL_STEP);
        let columns = panels.len() * TILE_COLUMNS;
        for (place, panel) in panels.enumerate() {
            for chunk in 0..TILE_COLUMNS / (VECTORS * S::F32_LANES) {
                let from = place * TILE_COLUMNS + chunk * VECTORS * S::F32_LANES;
                Chunk { simd, left, steps, panel, chunk, sums: &mut *sums, columns, from }.all::<S>(rows);
            }
        }
    }
}

/// A pair of vectors of columns.
struct Chunk<'a, S> {
    simd: S,
    left: &'a [Line],
    steps: usize,
    panel: &'a [Line],
    /// Its place in the panel.
    chunk: usize,
    sums: &'a mut [f32],
    /// Sums of a row.
    columns: usize,
    /// The first sum of this pair.
    from: usize,
}

impl<S: Simd> Chunk<'_, S> {
    /// One of the vectors of weights of a pair of rows, widened. The right half of a panel comes after the left one.
    #[inline(always)]
    fn weights(&self, panel: &[Line; PANEL_STEP], pair: usize, vector: usize) -> [S::f32s; 2] {
        let column = (VECTORS * self.chunk + vector) * S::F32_LANES;
        let line = panel.get(column / PAIRS * PAIRS + pair);
        let vectors = line.map_or(&[][..], |line| S::as_simd_u32s(&line.0).0);
        let pairs = vectors.get(column % PAIRS / S::F32_LANES).copied().unwrap_or(self.simd.splat_u32s(0));
        widened(self.simd, pairs)
    }
}

/// The first and the second of each pair in single precision. A function: closures, and `map` of arrays, are not always
/// inlined, and then vectors are handed over in memory.
#[inline(always)]
pub(super) fn widened<S: Simd>(simd: S, pairs: S::u32s) -> [S::f32s; 2] {
    let (even, odd) =
        (simd.wrapping_dyn_shl_u32s(pairs, simd.splat_u32s(16)), simd.and_u32s(pairs, simd.splat_u32s(0xffff_0000)));
    [simd.transmute_f32s_u32s(even), simd.transmute_f32s_u32s(odd)]
}

impl<S: Simd> Tiles for Chunk<'_, S> {
    #[inline(always)]
    fn tile<const M: usize>(&mut self, first: usize) {
        let simd = self.simd;
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; M];
        let nothing = Line::default();
        for (step, panel) in self.panel.as_chunks::<PANEL_STEP>().0.iter().enumerate() {
            let mut lines = [&nothing; M];
            for (place, line) in lines.iter_mut().enumerate() {
                *line = self.left.get(line_of(first + place, step, self.steps)).unwrap_or(&nothing);
            }
            for pair in 0..PAIRS {
                let weights = [self.weights(panel, pair, 0), self.weights(panel, pair, 1)];
                for (sums, line) in sums.iter_mut().zip(lines) {
                    let [even, odd] = widened(simd, simd.splat_u32s(line.0.get(pair).copied().unwrap_or(0)));
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        *sum = simd.mul_add_e_f32s(even, weights[0], *sum);
                        *sum = simd.mul_add_e_f32s(odd, weights[1], *sum);
                    }
                }
            }
        }
        for (row, [a, b]) in sums.into_iter().enumerate() {
            let begin = (first + row) * self.columns + self.from;
            let slots = self.sums.get_mut(begin..begin + VECTORS * S::F32_LANES).unwrap_or(&mut []);
            if let [first, second] = S::as_mut_simd_f32s(slots).0 {
                (*first, *second) = (a, b);
            }
        }
    }
}

const _: () = assert!(BLOCK == PAIRS, "a half of a panel is as wide as a block is high");
