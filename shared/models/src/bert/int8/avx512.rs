//! Products of whole numbers by AVX512-VNNI: each instruction adds sixteen sums of four products.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m512, __m512i, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_reduce_add_epi32,
    _mm512_set1_epi32, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps,
};
use std::hint::black_box;
use std::time::Instant;

use pulp::Arch;
use pulp::x86::V4;

use super::{PANEL_STEP, Product, TILE_COLUMNS};
use crate::bert::lines::{Line, WORDS};

/// Rows of a tile of sums: with two vectors each half the registers, so that none is waited for.
const ROWS: usize = 8;
/// Vectors side by side: a panel.
const VECTORS: usize = TILE_COLUMNS / WORDS;

/// A processor with AVX512-VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(V4);

impl Avx512 {
    /// None where there is none.
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx512vnni").then(V4::try_new).flatten().map(Self)
    }

    pub(super) fn arch(self) -> Arch {
        Arch::V4(self.0)
    }

    /// sums = left * panel.
    pub(super) fn multiply(self, product: Product<'_>) {
        // SAFETY: this type is made only where the processor has what the function needs.
        unsafe { multiply(product) };
    }

    /// Makes numbers in single precision of the whole ones that lie where they will.
    pub(super) fn convert(self, sums: &mut [f32]) {
        // SAFETY: as above.
        unsafe { convert(sums) };
    }

    /// Operations a second that one thread reaches at best.
    pub(super) fn peak_operations(self) -> f64 {
        // SAFETY: as above.
        unsafe { peak() }
    }
}

#[target_feature(enable = "avx512f")]
fn convert(sums: &mut [f32]) {
    for sums in sums.as_chunks_mut::<WORDS>().0 {
        // SAFETY: a vector is as long as 16 numbers.
        unsafe {
            let whole = _mm512_loadu_si512(sums.as_ptr().cast());
            _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_cvtepi32_ps(whole));
        }
    }
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply(product: Product<'_>) {
    let Product { left, rows, panel, sums } = product;
    let panel = panel.as_chunks::<PANEL_STEP>().0;
    let mut left = left.chunks_exact(panel.len());
    let mut slots = sums.as_chunks_mut::<TILE_COLUMNS>().0.iter_mut();
    let mut first = 0;
    while first < rows {
        // Rows that are too many are there to be read, and their sums are nobody's.
        let mut rows: [&[Line]; ROWS] = [&[]; ROWS];
        for row in &mut rows {
            *row = left.next().unwrap_or(&[]);
        }
        for (sums, slots) in tile(rows, panel).into_iter().zip(slots.by_ref()) {
            // SAFETY: two vectors are as long as 32 numbers.
            *slots = unsafe { std::mem::transmute::<[__m512; VECTORS], [f32; TILE_COLUMNS]>(sums) };
        }
        first += ROWS;
    }
}

/// Some rows times a panel.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn tile(rows: [&[Line]; ROWS], panel: &[[Line; PANEL_STEP]]) -> [[__m512; VECTORS]; ROWS] {
    let nothing = &Line([0; WORDS]);
    let mut sums = [[_mm512_setzero_si512(); VECTORS]; ROWS];
    for (step, weights) in panel.iter().enumerate() {
        let mut lines = [nothing; ROWS];
        for (line, row) in lines.iter_mut().zip(&rows) {
            *line = row.get(step).unwrap_or(nothing);
        }
        let [left, right] = weights.as_chunks::<WORDS>().0 else { break };
        for (word, weights) in left.iter().zip(right).enumerate() {
            let weights = [numbers(weights.0), numbers(weights.1)];
            for (sums, row) in sums.iter_mut().zip(lines) {
                let x = _mm512_set1_epi32(row.0.get(word).copied().unwrap_or(0).cast_signed());
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = _mm512_dpbusd_epi32(*sum, x, weights);
                }
            }
        }
    }
    // Not by `map`, which is not always inlined.
    let mut converted = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    for (to, sum) in converted.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
        *to = _mm512_cvtepi32_ps(*sum);
    }
    converted
}

/// The numbers of a line.
#[inline]
#[target_feature(enable = "avx512f")]
fn numbers(line: &Line) -> __m512i {
    // SAFETY: both are 64 bytes, and any bits are numbers.
    unsafe { std::mem::transmute::<[u32; WORDS], __m512i>(line.0) }
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn peak() -> f64 {
    const SUMS: usize = 12;
    const ADDITIONS: u32 = 1_000_000;
    let (x, y) = (_mm512_set1_epi32(black_box(0x0102_0304)), _mm512_set1_epi32(black_box(0x0101_0101)));
    let mut sums = [_mm512_setzero_si512(); SUMS];
    let started = Instant::now();
    for _ in 0..ADDITIONS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, x, y);
        }
    }
    black_box(sums.map(|sum| _mm512_reduce_add_epi32(sum)));
    const OPERATIONS: f64 = (SUMS * WORDS * 4 * 2) as f64;
    OPERATIONS * f64::from(ADDITIONS) / started.elapsed().as_secs_f64()
}
