//! Numbers rounded to bf16, in lines of the cache. The left of a product lies in blocks of 16 rows: for every 32 columns
//! a line of each row, one after another. So 16 rows and 32 columns are one kilobyte without gaps, which is a tile of
//! AMX, and how many rows there are matters to no kernel: what a block has too much is computed and dropped.

use pulp::bytemuck::cast;

use crate::bert::lines::{Line, WORDS};

/// Pairs of numbers in a line, the first of a pair in front.
pub(super) const PAIRS: usize = WORDS;
/// Numbers in a line: how far a step of a product goes into the depth.
pub(super) const STEP: usize = 2 * PAIRS;
/// Rows of a block.
pub(super) const BLOCK: usize = 16;
/// Bits of a number in single precision that bf16 does not have.
const DROPPED: u32 = 16;

/// As sixteen pairs.
impl Line {
    /// Numbers, rounded.
    #[inline(always)]
    pub fn rounded(numbers: &[f32; STEP]) -> Self {
        let mut slots = [0; STEP];
        for (slot, x) in slots.iter_mut().zip(numbers) {
            *slot = round(*x);
        }
        Self(cast(slots))
    }

    #[inline(always)]
    pub fn numbers(&self) -> [u16; STEP] {
        cast(self.0)
    }
}

/// The nearest number in bf16; of two that are equally near, the even one. What is no number stays none.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the upper half of 32 bits")]
pub(super) fn round(x: f32) -> u16 {
    const HALF: u32 = (1 << (DROPPED - 1)) - 1;
    const NOT_A_NUMBER: u16 = 0x7fc0;
    let bits = x.to_bits();
    let up = HALF + (bits >> DROPPED & 1);
    if x.is_nan() { NOT_A_NUMBER } else { (bits.wrapping_add(up) >> DROPPED) as u16 }
}

/// Where the line of a row is that holds its columns from `32 * step` on, in a matrix of so many steps.
#[inline(always)]
pub(super) fn line_of(row: usize, step: usize, steps: usize) -> usize {
    (row / BLOCK * steps + step) * BLOCK + row % BLOCK
}

/// Lines that rows of so many numbers take, the last block filled up.
pub(super) fn lines_of(rows: usize, width: usize) -> usize {
    rows.next_multiple_of(BLOCK) * width.div_ceil(STEP)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bert::simd::tests::cases;

    /// What a number in bf16 stands for.
    pub fn exact(x: u16) -> f32 {
        f32::from_bits(u32::from(x) << DROPPED)
    }

    /// Rows as lines.
    pub fn lines(rows: &[f32], width: usize) -> Vec<Line> {
        let count = rows.len() / width;
        let mut lines = vec![Line::default(); lines_of(count, width)];
        for (place, row) in rows.chunks(width).enumerate() {
            for (step, part) in row.chunks(STEP).enumerate() {
                let mut numbers = [0.0; STEP];
                numbers[..part.len()].copy_from_slice(part);
                lines[line_of(place, step, width.div_ceil(STEP))] = Line::rounded(&numbers);
            }
        }
        lines
    }

    /// A number of a matrix of lines.
    pub fn at(lines: &[Line], width: usize, row: usize, column: usize) -> f32 {
        exact(lines[line_of(row, column / STEP, width.div_ceil(STEP))].numbers()[column % STEP])
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn no_number_in_bf16_is_nearer_than_the_rounded_one(bits in any::<u32>()) {
            let x = f32::from_bits(bits);
            let rounded = round(x);
            if x.is_nan() {
                prop_assert!(exact(rounded).is_nan());
            } else if exact(rounded).is_finite() {
                let far = |y: u16| (f64::from(exact(y)) - f64::from(x)).abs();
                for other in [rounded.wrapping_sub(1), rounded.wrapping_add(1)] {
                    let finite = exact(other).is_finite();
                    prop_assert!(!finite || far(rounded) < far(other) || far(rounded) == far(other) && rounded & 1 == 0);
                }
            }
        }
    }

    #[test]
    fn a_block_has_no_gaps() {
        let found: Vec<usize> = (0..3).flat_map(|step| (0..16).map(move |row| line_of(row, step, 3))).collect();
        assert_eq!(found, (0..48).collect::<Vec<_>>());
        assert_eq!(line_of(16, 0, 3), 48);
        assert_eq!(lines_of(17, 33), 64);
    }
}
