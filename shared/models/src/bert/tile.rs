//! The innermost loop of products in single precision, and asking for memory before it is needed. Beside the kernels of bf16
//! and int8 the only unsafe code of this crate.
#![allow(unsafe_code)]

use pulp::Simd;

/// Vectors side by side in a row of a tile: with two, six rows fill the registers that most processors have.
pub(super) const VECTORS: usize = 2;

/// rows * panel: for each row and each number of the panel's rows the sum over the depth both have.
///
/// The sums begin as zeros here and nowhere else: handed in, they were kept in memory by the compiler, which halved the
/// speed.
#[inline(always)]
pub(super) fn tile<S: Simd, const M: usize>(
    simd: S,
    rows: [&[f32]; M],
    panel: &[[S::f32s; VECTORS]],
) -> [[S::f32s; VECTORS]; M] {
    let depth = rows.iter().fold(panel.len(), |depth, row| depth.min(row.len()));
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; M];
    for (place, panel) in panel.iter().take(depth).enumerate() {
        for (sums, row) in sums.iter_mut().zip(&rows) {
            // SAFETY: place < depth, and no row is shorter. The checks that the compiler would leave here are half as
            // many as the products they stand beside.
            let x = simd.splat_f32s(unsafe { *row.get_unchecked(place) });
            for (sum, weight) in sums.iter_mut().zip(panel) {
                *sum = simd.mul_add_e_f32s(x, *weight, *sum);
            }
        }
    }
    sums
}

/// Bytes of a line of the cache.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Brings memory into the second cache, in the background.
#[inline(always)]
pub(super) fn prefetch<T>(memory: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in memory.chunks(LINE / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch reads and writes nothing a program can see, whatever the address; SSE, which it belongs
        // to, is part of every x86-64 processor.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = memory;
}
