//! What the processor could do: products and sums in registers, nothing else.

use std::hint::black_box;
use std::time::Instant;

use pulp::{Arch, Simd, WithSimd};

/// Sums side by side: enough that none is waited for.
const SUMS: usize = 12;
/// Additions to each of them, in a round of some milliseconds.
const ADDITIONS: usize = 1_000_000;

/// What so many threads reach together, each in the best of some rounds.
pub(crate) fn of(threads: usize, round: impl Fn() -> f64 + Sync) -> f64 {
    let rounds = || (0..10).map(|_| round()).fold(0.0, f64::max);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(rounds)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).sum()
    })
}

/// One round in single precision, on this thread.
pub(crate) fn single(arch: Arch) -> f64 {
    arch.dispatch(Products)
}

struct Products;

impl WithSimd for Products {
    type Output = f64;

    #[inline(always)]
    #[allow(clippy::cast_precision_loss)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let (x, y) = (simd.splat_f32s(black_box(0.999)), simd.splat_f32s(black_box(0.001)));
        let mut sums = [simd.splat_f32s(black_box(0.5)); SUMS];
        let started = Instant::now();
        for _ in 0..ADDITIONS {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(x, *sum, y);
            }
        }
        black_box(sums.map(|sum| simd.reduce_sum_f32s(sum)));
        (2 * SUMS * S::F32_LANES * ADDITIONS) as f64 / started.elapsed().as_secs_f64()
    }
}
