//! Products of whole numbers by AVX2: an instruction multiplies 32 of them and adds pairs up in 16 bits, which weights are
//! small enough for (see [`super::quantised`]), another one adds pairs of those up in 32.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m256, __m256i, _mm256_add_epi8, _mm256_add_epi32, _mm256_cvtepi32_ps, _mm256_extract_epi32, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_ps, _mm256_setzero_si256,
};
use std::hint::black_box;
use std::time::Instant;

use pulp::Arch;
use pulp::x86::V3;

use super::{PANEL_STEP, Product, TILE_COLUMNS};
use crate::bert::lines::{Line, WORDS};

/// Rows of a tile of sums: with two vectors each, the weights and what is on the way, all registers.
const ROWS: usize = 4;
/// Vectors side by side: a line.
const VECTORS: usize = 2;

/// A processor with AVX2.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(V3);

impl Avx2 {
    /// None where there is none.
    pub(super) fn detect() -> Option<Self> {
        V3::try_new().map(Self)
    }

    pub(super) fn arch(self) -> Arch {
        Arch::new()
    }

    /// sums = left * panel.
    pub(super) fn multiply(self, product: Product<'_>) {
        // SAFETY: this type is made only where the processor has AVX2.
        unsafe { multiply(product) };
    }

    /// Operations a second that one thread reaches at best.
    pub(super) fn peak_operations(self) -> f64 {
        // SAFETY: as above.
        unsafe { peak() }
    }
}

#[target_feature(enable = "avx2")]
fn multiply(product: Product<'_>) {
    let Product { left, rows, panel, sums } = product;
    let panel = panel.as_chunks::<PANEL_STEP>().0;
    for half in 0..TILE_COLUMNS / WORDS {
        let mut left = left.chunks_exact(panel.len());
        let mut slots = sums.as_chunks_mut::<TILE_COLUMNS>().0.iter_mut();
        let mut first = 0;
        while first < rows {
            // Rows that are too many are there to be read, and their sums are nobody's.
            let mut rows: [&[Line]; ROWS] = [&[]; ROWS];
            for row in &mut rows {
                *row = left.next().unwrap_or(&[]);
            }
            for (sums, slots) in tile(rows, panel, half).into_iter().zip(slots.by_ref()) {
                if let Some(slots) = slots.as_chunks_mut::<WORDS>().0.get_mut(half) {
                    // SAFETY: two vectors are as long as 16 numbers.
                    *slots = unsafe { std::mem::transmute::<[__m256; VECTORS], [f32; WORDS]>(sums) };
                }
            }
            first += ROWS;
        }
    }
}

/// Some rows times half a panel.
#[inline]
#[target_feature(enable = "avx2")]
fn tile(rows: [&[Line]; ROWS], panel: &[[Line; PANEL_STEP]], half: usize) -> [[__m256; VECTORS]; ROWS] {
    let ones = _mm256_set1_epi16(1);
    let nothing = &Line([0; WORDS]);
    let mut sums = [[_mm256_setzero_si256(); VECTORS]; ROWS];
    for (step, weights) in panel.iter().enumerate() {
        let Some(weights) = weights.as_chunks::<WORDS>().0.get(half) else { break };
        let mut lines = [nothing; ROWS];
        for (line, row) in lines.iter_mut().zip(&rows) {
            *line = row.get(step).unwrap_or(nothing);
        }
        for (word, weights) in weights.iter().enumerate() {
            // SAFETY: both are 64 bytes, and any bits are numbers.
            let weights = unsafe { std::mem::transmute::<[u32; WORDS], [__m256i; VECTORS]>(weights.0) };
            for (sums, row) in sums.iter_mut().zip(lines) {
                let x = _mm256_set1_epi32(row.0.get(word).copied().unwrap_or(0).cast_signed());
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, weights), ones));
                }
            }
        }
    }
    // Not by `map`, which is not always inlined.
    let mut converted = [[_mm256_setzero_ps(); VECTORS]; ROWS];
    for (to, sum) in converted.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
        *to = _mm256_cvtepi32_ps(*sum);
    }
    converted
}

#[target_feature(enable = "avx2")]
fn peak() -> f64 {
    const ADDITIONS: u32 = 1_000_000;
    let ones = _mm256_set1_epi16(1);
    let mut xs = [_mm256_setzero_si256(); ROWS];
    let weights = [_mm256_set1_epi32(black_box(0x0101_0101)), _mm256_set1_epi32(black_box(0x0201_0101))];
    let mut sums = [[_mm256_setzero_si256(); VECTORS]; ROWS];
    let started = Instant::now();
    for _ in 0..ADDITIONS {
        for (sums, x) in sums.iter_mut().zip(&mut xs) {
            // Another one each time: the same product would be made once.
            *x = _mm256_add_epi8(*x, weights[0]);
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_maddubs_epi16(*x, weights), ones));
            }
        }
    }
    black_box(sums.map(|sums| sums.map(|sum| _mm256_extract_epi32::<0>(sum))));
    const OPERATIONS: f64 = (ROWS * VECTORS * 32 * 2) as f64;
    OPERATIONS * f64::from(ADDITIONS) / started.elapsed().as_secs_f64()
}
