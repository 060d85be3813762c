//! Numbers of eight bits, and what they stand for. A line holds 64 numbers of a row: a word of it four that are 16 apart, so
//! that they are made a vector at a time. The weights lie in the same order.

use pulp::bytemuck::cast;
use pulp::{Arch, Simd, WithSimd};

use super::{BLOCK, PANEL_STEP, STEP, TILE_COLUMNS, TILE_ROWS};
use crate::bert::lines::{Line, Lines, WORDS};

/// Rows of numbers from 0 to 255, kept from one use to the next.
#[derive(Debug, Default)]
pub(in crate::bert) struct Quantised {
    lines: Lines,
    ranges: Vec<Range>,
    /// Lines of a row.
    steps: usize,
}

/// What the numbers of a row stand for: (number - zero) * scale.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Range {
    pub scale: f32,
    pub zero: f32,
}

impl Quantised {
    /// Takes rows of so many numbers instead of those that it has.
    pub fn take(&mut self, arch: Arch, rows: &[f32], width: usize) {
        let count = rows.len() / width;
        self.steps = width.div_ceil(STEP);
        self.ranges.resize(count, Range::default());
        let lines = self.lines.first(count.next_multiple_of(BLOCK) * self.steps);
        arch.dispatch(Quantise { rows, width, steps: self.steps, lines, ranges: &mut self.ranges });
    }

    /// Tiles of rows, one after another: what each row stands for, and their lines with those of the rows that a block has
    /// too much.
    pub(super) fn tiles(&self) -> impl Iterator<Item = (&[Range], &[Line])> {
        self.ranges.chunks(TILE_ROWS).zip(self.lines.all().chunks(TILE_ROWS * self.steps))
    }

    /// Lines of a row.
    pub fn steps(&self) -> usize {
        self.steps
    }
}

struct Quantise<'a> {
    rows: &'a [f32],
    width: usize,
    steps: usize,
    lines: &'a mut [Line],
    ranges: &'a mut [Range],
}

impl WithSimd for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        /// Added to a small number, it rounds it to an integer, which then stands in the low bits.
        const ROUND: f32 = 12_582_912.0;
        let (zero, most, round) = (simd.splat_f32s(0.0), simd.splat_f32s(255.0), simd.splat_f32s(ROUND));
        let byte = simd.splat_u32s(0xff);
        let slots = self.lines.chunks_exact_mut(self.steps).zip(self.ranges);
        for (row, (lines, range)) in self.rows.chunks_exact(self.width).zip(slots) {
            let (vectors, rest) = S::as_simd_f32s(row);
            let (mut least, mut greatest) = (zero, zero);
            for x in vectors {
                (least, greatest) = (simd.min_f32s(least, *x), simd.max_f32s(greatest, *x));
            }
            let least = rest.iter().copied().fold(simd.reduce_min_f32s(least), f32::min);
            let greatest = rest.iter().copied().fold(simd.reduce_max_f32s(greatest), f32::max);
            let scale = (greatest - least) / 255.0;
            // So little is nothing.
            let per_scale = if scale > f32::MIN_POSITIVE { scale.recip() } else { 0.0 };
            let at_zero = (-least * per_scale).round_ties_even();
            *range = Range { scale, zero: at_zero };
            let (per_scale, at_zero) = (simd.splat_f32s(per_scale), simd.splat_f32s(at_zero));
            for (numbers, line) in row.chunks(STEP).zip(lines) {
                let mut padded = [0.0; STEP];
                let numbers = numbers.as_array().unwrap_or_else(|| {
                    padded.iter_mut().zip(numbers).for_each(|(slot, x)| *slot = *x);
                    &padded
                });
                let parts = numbers.as_chunks::<WORDS>().0;
                let words = S::as_mut_simd_u32s(&mut line.0).0;
                words.fill(simd.splat_u32s(0));
                for (part, shift) in parts.iter().zip([0, 8, 16, 24]) {
                    let shift = simd.splat_u32s(shift);
                    for (word, x) in words.iter_mut().zip(S::as_simd_f32s(part).0) {
                        // Not fused, so that every processor has the same.
                        let place = simd.add_f32s(simd.mul_f32s(*x, per_scale), at_zero);
                        let rounded = simd.add_f32s(simd.min_f32s(simd.max_f32s(place, zero), most), round);
                        let number = simd.and_u32s(simd.transmute_u32s_f32s(rounded), byte);
                        *word = simd.or_u32s(*word, simd.wrapping_dyn_shl_u32s(number, shift));
                    }
                }
            }
        }
    }
}

/// Weights of columns, and what comes with each of them.
pub(super) struct Columns {
    /// Panel after panel.
    pub panels: Vec<Line>,
    /// For each panel what its numbers stand for.
    pub scales: Vec<Scales>,
}

/// What the numbers of a panel stand for, column by column; zeros where there is no column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales {
    pub scale: [f32; TILE_COLUMNS],
    /// Sum of all weights.
    pub sum: [f32; TILE_COLUMNS],
}

impl Columns {
    /// Of weights as BERT's files have them: for each column as many numbers as a row has.
    pub fn quantise(weights: &[f32], depth: usize) -> Self {
        let (width, steps) = (weights.len() / depth, depth.div_ceil(STEP));
        let nothing = Scales { scale: [0.0; TILE_COLUMNS], sum: [0.0; TILE_COLUMNS] };
        let mut panels = vec![[0i8; STEP]; width.div_ceil(TILE_COLUMNS) * steps * PANEL_STEP];
        let mut scales = vec![nothing; width.div_ceil(TILE_COLUMNS)];
        for (column, weights) in weights.chunks_exact(depth).enumerate() {
            let (panel, half) = (column / TILE_COLUMNS, column % TILE_COLUMNS / WORDS);
            let (scale, numbers) = quantise(weights);
            for (row, number) in numbers.iter().enumerate() {
                let line = (panel * steps + row / STEP) * PANEL_STEP + half * WORDS + row % WORDS;
                let slot = panels.get_mut(line).and_then(|line| line.get_mut(column % WORDS * 4 + row % STEP / WORDS));
                if let Some(slot) = slot {
                    *slot = *number;
                }
            }
            let of_panel = scales.get_mut(panel);
            let slots = of_panel.map(|all| all.scale.iter_mut().zip(&mut all.sum)).into_iter().flatten();
            for (slot, sum) in slots.skip(column % TILE_COLUMNS).take(1) {
                *slot = scale;
                *sum = scale * numbers.iter().map(|x| f32::from(*x)).sum::<f32>();
            }
        }
        Self { panels: panels.into_iter().map(|numbers| Line(cast(numbers))).collect(), scales }
    }
}

/// Weights of a column as numbers from -127 to 127, and what one stands for. The first two of a word have at most 128 of one
/// sign together, and so have the other two: times two numbers up to 255 their sum fits into 16 bits, where AVX2 has it on
/// the way.
fn quantise(weights: &[f32]) -> (f32, Vec<i8>) {
    let of_one_sign = |pair: [f32; 2]| {
        let sum = |sign: f32| (pair[0] * sign).max(0.0) + (pair[1] * sign).max(0.0);
        sum(1.0).max(sum(-1.0))
    };
    let scale = pairs(weights).map(of_one_sign).fold(0.0, f32::max) / 127.0;
    #[allow(clippy::cast_possible_truncation, reason = "none is greater than 127")]
    let number = |x: &f32| if scale > f32::MIN_POSITIVE { (x / scale).round_ties_even() as i8 } else { 0 };
    (scale, weights.iter().map(number).collect())
}

/// Those that are added up first: two that are beside each other in a word.
fn pairs<T: Copy + Default>(numbers: &[T]) -> impl Iterator<Item = [T; 2]> {
    numbers.chunks(2 * WORDS).flat_map(|halves| {
        let (first, second) = halves.split_at(WORDS.min(halves.len()));
        first.iter().enumerate().map(|(place, x)| [*x, second.get(place).copied().unwrap_or_default()])
    })
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bert::simd::tests::{arches, cases, numbers, sizes};

    impl Quantised {
        /// A number as it lies there.
        pub fn number(&self, row: usize, column: usize) -> u8 {
            let bytes: [u8; STEP] = cast(self.lines.all()[row * self.steps + column / STEP].0);
            bytes[column % WORDS * 4 + column % STEP / WORDS]
        }

        /// What it stands for.
        pub fn at(&self, row: usize, column: usize) -> f64 {
            let Range { scale, zero } = self.ranges[row];
            (f64::from(self.number(row, column)) - f64::from(zero)) * f64::from(scale)
        }
    }

    impl Columns {
        /// A number as it lies there.
        pub fn number(&self, steps: usize, row: usize, column: usize) -> i8 {
            let (panel, half) = (column / TILE_COLUMNS, column % TILE_COLUMNS / WORDS);
            let line = (panel * steps + row / STEP) * PANEL_STEP + half * WORDS + row % WORDS;
            let numbers: [i8; STEP] = cast(self.panels[line].0);
            numbers[column % WORDS * 4 + row % STEP / WORDS]
        }
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn numbers_of_rows_stand_for_what_was_there(
            rows in sizes(0..40),
            width in sizes(1..200),
            shift in -2f32..2.0,
            size in -30i32..30,
            seed in any::<u32>(),
        ) {
            let size = 2f32.powi(size);
            let x: Vec<f32> = numbers(seed).map(|x| (x + shift) * size).take(rows * width).collect();
            let mut found = Vec::new();
            for arch in arches() {
                let mut ours = Quantised::default();
                // What was there before must not matter.
                ours.take(arch, &vec![7.0; 50 * 130], 130);
                ours.take(arch, &x, width);
                prop_assert_eq!(ours.ranges.len(), rows);
                for (place, x) in x.iter().enumerate() {
                    let (row, column) = (place / width, place % width);
                    let far = (ours.at(row, column) - f64::from(*x)).abs();
                    prop_assert!(far <= 0.505 * f64::from(ours.ranges[row].scale), "{arch:?}: {far} from {x}");
                }
                found.push((0..rows * width).map(|place| ours.number(place / width, place % width)).collect::<Vec<_>>());
            }
            prop_assert_eq!(&found[0], &found[1]);
        }

        #[test]
        fn numbers_of_weights_stand_for_what_was_there_and_fit(depth in sizes(1..200), width in sizes(1..70), seed in any::<u32>()) {
            let weights: Vec<f32> = numbers(seed).map(|x| x.powi(5)).take(width * depth).collect();
            let ours = Columns::quantise(&weights, depth);
            let steps = depth.div_ceil(STEP);
            for (column, weights) in weights.chunks_exact(depth).enumerate() {
                let scales = &ours.scales[column / TILE_COLUMNS];
                let (scale, sum) = (scales.scale[column % TILE_COLUMNS], scales.sum[column % TILE_COLUMNS]);
                let found: Vec<i32> = (0..depth).map(|row| ours.number(steps, row, column).into()).collect();
                for (number, weight) in found.iter().zip(weights) {
                    let far = (f64::from(*number) * f64::from(scale) - f64::from(*weight)).abs();
                    prop_assert!(far <= 0.505 * f64::from(scale), "{far} from {weight}");
                }
                let exact = f64::from(found.iter().sum::<i32>()) * f64::from(scale);
                prop_assert!((f64::from(sum) - exact).abs() <= exact.abs() * 1e-6);
                for pair in pairs(&found) {
                    let greatest: i32 = pair.iter().map(|x| 255 * (*x).max(0)).sum();
                    let least: i32 = pair.iter().map(|x| 255 * (*x).min(0)).sum();
                    prop_assert!(i16::try_from(greatest).is_ok() && i16::try_from(least).is_ok(), "{pair:?}");
                }
            }
        }
    }

    #[test]
    fn a_row_of_nothing_stands_for_nothing() {
        let mut ours = Quantised::default();
        for (x, least, most) in [(0.0, 0.0, 0.0), (1e-42, -1e-41, 1e-41), (5.0, 4.99, 5.01), (-5.0, -5.01, -4.99)] {
            ours.take(Arch::new(), &[x; 70], 70);
            let all = (0..70).map(|column| ours.at(0, column));
            assert!(all.clone().all(|found| (least..=most).contains(&found)), "{x}");
        }
    }
}
