//! Products of bf16 by AVX512-BF16: each instruction adds sixteen sums of two products.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m512, __m512bh, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_reduce_add_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps,
};
use std::hint::black_box;
use std::time::Instant;

use pulp::Arch;
use pulp::x86::V4;

use super::lines::{BLOCK, PAIRS, STEP};
use super::{OnVectors, PANEL_STEP, Product, Rounding, TILE_COLUMNS};
use crate::bert::lines::Line;

/// Rows of a tile of sums: with two vectors each half the registers, so that none is waited for.
const ROWS: usize = 8;
/// Vectors side by side.
const VECTORS: usize = 2;

/// A processor with AVX512-BF16.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(V4);

impl Avx512 {
    /// None where there is none.
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx512bf16").then(V4::try_new).flatten().map(Self)
    }

    pub(super) fn arch(self) -> Arch {
        Arch::V4(self.0)
    }

    /// sums = left * panels.
    pub(super) fn multiply(self, product: Product<'_>) {
        // SAFETY: this type is made only where the processor has what the function needs.
        unsafe { multiply(product) };
    }

    /// Does work on vectors.
    pub(super) fn dispatch<W: OnVectors>(self, work: W) {
        // SAFETY: as above.
        unsafe { run(self, work) };
    }

    /// Floating-point operations a second that one thread reaches at best.
    pub(super) fn peak_flops(self) -> f64 {
        // SAFETY: as above.
        unsafe { peak() }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,bmi1,bmi2,lzcnt,popcnt")]
fn run<W: OnVectors>(kernel: Avx512, work: W) {
    work.run(kernel.0, ByProcessor(kernel));
}

/// Rounding by an instruction.
#[derive(Clone, Copy)]
struct ByProcessor(#[allow(dead_code, reason = "where it is, the instruction is")] Avx512);

impl Rounding for ByProcessor {
    #[inline(always)]
    fn line(self, numbers: &[f32; STEP]) -> Line {
        // SAFETY: the processor has it, or there would be no `Avx512`; an array of 32 numbers is as long as two vectors,
        // and a line is as long as one.
        unsafe {
            let [low, high] = std::mem::transmute_copy::<[f32; STEP], [__m512; 2]>(numbers);
            Line(std::mem::transmute::<__m512bh, [u32; PAIRS]>(_mm512_cvtne2ps_pbh(high, low)))
        }
    }
}

/// Sixteen pairs.
#[inline]
#[target_feature(enable = "avx512f")]
fn pairs(line: &Line) -> __m512bh {
    // SAFETY: both are 64 bytes, and any bits are pairs.
    unsafe { std::mem::transmute::<[u32; PAIRS], __m512bh>(line.0) }
}

/// The same pair sixteen times.
#[inline]
#[target_feature(enable = "avx512f")]
fn pair(x: u32) -> __m512bh {
    // SAFETY: both are 64 bytes, and any bits are pairs.
    unsafe { std::mem::transmute(_mm512_set1_epi32(x.cast_signed())) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply(product: Product<'_>) {
    let Product { left, rows, steps, panels, sums } = product;
    let panels = panels.chunks_exact(steps * PANEL_STEP);
    let columns = panels.len() * TILE_COLUMNS;
    for (place, panel) in panels.enumerate() {
        let blocks = left.chunks_exact(steps * BLOCK).zip(sums.chunks_exact_mut(BLOCK * columns));
        for (block, (left, sums)) in blocks.enumerate() {
            for (part, sums) in sums.chunks_exact_mut(ROWS * columns).enumerate() {
                if block * BLOCK + part * ROWS < rows {
                    let tile = tile(left, part, panel);
                    for (row, tile) in sums.chunks_exact_mut(columns).zip(tile) {
                        let slots = row.as_chunks_mut::<TILE_COLUMNS>().0.get_mut(place);
                        if let Some(slots) = slots {
                            // SAFETY: two vectors are as long as 32 numbers.
                            *slots = unsafe { std::mem::transmute::<[__m512; VECTORS], [f32; TILE_COLUMNS]>(tile) };
                        }
                    }
                }
            }
        }
    }
}

/// Eight rows of a block times a panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn tile(left: &[Line], part: usize, panel: &[Line]) -> [[__m512; VECTORS]; ROWS] {
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    for (block, weights) in left.as_chunks::<BLOCK>().0.iter().zip(panel.as_chunks::<PANEL_STEP>().0) {
        let Some(rows) = block.as_chunks::<ROWS>().0.get(part) else { return sums };
        let [low, high] = weights.as_chunks::<PAIRS>().0 else { return sums };
        for place in 0..PAIRS {
            let (Some(low), Some(high)) = (low.get(place), high.get(place)) else { return sums };
            let weights = [pairs(low), pairs(high)];
            for (sums, row) in sums.iter_mut().zip(rows) {
                let x = pair(row.0.get(place).copied().unwrap_or(0));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = _mm512_dpbf16_ps(*sum, x, weights);
                }
            }
        }
    }
    sums
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn peak() -> f64 {
    const SUMS: usize = 12;
    const ADDITIONS: u32 = 1_000_000;
    let (x, y) = (pair(black_box(0x3f80_3f80)), pair(black_box(0x3c00_3c00)));
    let mut sums = [_mm512_set1_ps(black_box(0.5)); SUMS];
    let started = Instant::now();
    for _ in 0..ADDITIONS {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, x, y);
        }
    }
    black_box(sums.map(|sum| _mm512_reduce_add_ps(sum)));
    const OPERATIONS: f64 = (SUMS * STEP * 2) as f64;
    OPERATIONS * f64::from(ADDITIONS) / started.elapsed().as_secs_f64()
}
