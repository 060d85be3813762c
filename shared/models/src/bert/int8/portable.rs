//! Products of whole numbers on any processor, one after another.

use pulp::bytemuck::cast;
use pulp::{Arch, Simd, WithSimd};

use super::{PANEL_STEP, Product, STEP, TILE_COLUMNS};
use crate::bert::lines::WORDS;

/// sums = left * panel.
pub(super) fn multiply(arch: Arch, product: Product<'_>) {
    arch.dispatch(product);
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    #[allow(clippy::cast_precision_loss, reason = "as all kernels round it")]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { left, rows, panel, sums } = self;
        let panel = panel.as_chunks::<PANEL_STEP>().0;
        for (row, slots) in left.chunks_exact(panel.len()).take(rows).zip(sums.as_chunks_mut::<TILE_COLUMNS>().0) {
            let mut sums = [[0i32; WORDS]; TILE_COLUMNS / WORDS];
            for (line, weights) in row.iter().zip(panel) {
                for (sums, weights) in sums.iter_mut().zip(weights.as_chunks::<WORDS>().0) {
                    for (word, weights) in line.0.iter().zip(weights) {
                        let numbers: [u8; 4] = word.to_ne_bytes();
                        let weights: [i8; STEP] = cast(weights.0);
                        for (sum, weights) in sums.iter_mut().zip(weights.as_chunks::<4>().0) {
                            let products = numbers.iter().zip(weights).map(|(x, y)| i32::from(*x) * i32::from(*y));
                            *sum += products.sum::<i32>();
                        }
                    }
                }
            }
            slots.iter_mut().zip(sums.as_flattened()).for_each(|(slot, sum)| *slot = *sum as f32);
        }
    }
}
