//! Self-attention in bf16 over sequences that lie one after another, each attending to itself only. Both of its products
//! are those of the kernel, with keys and values in the place of weights; softmax is in single precision.

use pulp::Simd;
use pulp::bytemuck::cast;

use super::lines::{BLOCK, PAIRS, STEP, line_of, lines_of};
use super::portable::widened;
use super::{Kernel, OnVectors, PANEL_STEP, Product, Rounding, TILE_COLUMNS, TILE_ROWS};
use crate::bert::aligned::Aligned;
use crate::bert::approximate::exp_negative;
use crate::bert::lines::{Line, Lines};

/// Pairs in half a line: heads are a multiple of that wide.
const HALF: usize = PAIRS / 2;

/// Sequences and the shape of the heads.
pub(super) struct Attention<'a> {
    pub kernel: Kernel,
    /// A row of query (already divided by the root of a head's width), key and value for each token.
    pub qkv: &'a [Line],
    /// Rows of each sequence.
    pub lengths: &'a [usize],
    /// The first row of `out` among those of all sequences, and how many there are.
    pub first: usize,
    pub count: usize,
    pub heads: usize,
    /// Components of a head: a multiple of 16.
    pub head_width: usize,
    pub scratch: &'a mut Scratch,
    /// What tokens take from the others: a row of heads * `head_width` for each.
    pub out: &'a mut [Line],
}

/// Memory for one head of a sequence.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    queries: Lines,
    /// Panels of keys: pairs of components of 32 keys.
    keys: Lines,
    /// Panels of values: pairs of keys of 32 components.
    values: Lines,
    /// For each query of a tile its products with all keys.
    scores: Aligned,
    /// What they become: its weight for each key, not yet divided by their sum.
    weights: Lines,
    sums: Aligned,
}

impl Attention<'_> {
    /// Fills `out`.
    pub fn run(self) {
        let Self { kernel, qkv, lengths, first: begin, count, heads, head_width, scratch, out } = self;
        let engine = kernel.start();
        let width = heads * head_width;
        // Lines of a query, key or value of one head, and of a row of the matrices.
        let steps = head_width.div_ceil(STEP);
        let mut first = 0;
        for &length in lengths {
            let wanted = begin.max(first)..(begin + count).min(first + length);
            if wanted.is_empty() {
                first += length;
                continue;
            }
            let panels = length.div_ceil(TILE_COLUMNS);
            let queries = scratch.queries.first(lines_of(wanted.len(), head_width));
            let keys = scratch.keys.first(panels * steps * PANEL_STEP);
            let values = scratch.values.first(panels * steps * PANEL_STEP);
            let scores = scratch.scores.first(TILE_ROWS * panels * TILE_COLUMNS);
            let weights = scratch.weights.first(TILE_ROWS * panels);
            let sums = scratch.sums.first(TILE_ROWS * steps * TILE_COLUMNS);
            for from in (0..heads).map(|head| head * head_width) {
                let head = |part| Head { qkv, width, head_width, first, length, from: part * width + from };
                kernel.dispatch(LayHead {
                    parts: [Head { first: wanted.start, length: wanted.len(), ..head(0) }, head(1), head(2)],
                    queries: &mut *queries,
                    keys: &mut *keys,
                    values: &mut *values,
                });
                for (left, done) in queries.chunks(TILE_ROWS * steps).zip(wanted.clone().step_by(TILE_ROWS)) {
                    let rows = TILE_ROWS.min(wanted.end - done);
                    engine.multiply(Product { left, rows, steps, panels: keys, sums: &mut *scores });
                    let mut shares = [0.0; TILE_ROWS];
                    kernel.dispatch(Softmax { scores, rows, length, weights: &mut *weights, shares: &mut shares });
                    engine.multiply(Product { left: weights, rows, steps: panels, panels: values, sums: &mut *sums });
                    let sums = &*sums;
                    kernel.dispatch(Shared {
                        sums,
                        shares,
                        rows,
                        head_width,
                        first: done - begin,
                        from,
                        width,
                        out: &mut *out,
                    });
                }
            }
            first += length;
        }
    }
}

/// Queries, keys or values of one head of a sequence.
#[derive(Clone, Copy)]
struct Head<'a> {
    qkv: &'a [Line],
    /// Components of all heads.
    width: usize,
    head_width: usize,
    /// Its first row and how many there are.
    first: usize,
    length: usize,
    /// Its first column: a multiple of 16.
    from: usize,
}

impl Head<'_> {
    /// So many components of a row as there are, from `32 * step` on, then zeros.
    #[inline(always)]
    fn line(&self, row: usize, step: usize) -> Line {
        let steps = (3 * self.width).div_ceil(STEP);
        let from = self.from + step * STEP;
        let line = |column: usize| {
            let line = self.qkv.get(line_of(self.first + row, column / STEP, steps));
            line.copied().unwrap_or_default()
        };
        if from.is_multiple_of(STEP) && self.head_width - step * STEP >= STEP {
            return line(from);
        }
        let mut halves = [[0; HALF]; 2];
        for (place, half) in halves.iter_mut().enumerate() {
            let column = from + place * STEP / 2;
            if column < self.from + self.head_width {
                let [low, high]: [[u32; HALF]; 2] = cast(line(column).0);
                *half = if column.is_multiple_of(STEP) { low } else { high };
            }
        }
        Line(cast(halves))
    }
}

/// Brings one head of a sequence where the products expect it.
struct LayHead<'a> {
    /// Queries, keys and values.
    parts: [Head<'a>; 3],
    queries: &'a mut [Line],
    keys: &'a mut [Line],
    values: &'a mut [Line],
}

impl OnVectors for LayHead<'_> {
    #[inline(always)]
    fn run<S: Simd, R: Rounding>(self, _: S, _: R) {
        let [queries, keys, values] = self.parts;
        let (length, steps) = (keys.length, queries.head_width.div_ceil(STEP));
        for step in 0..steps {
            for row in 0..queries.length {
                if let Some(slot) = self.queries.get_mut(line_of(row, step, steps)) {
                    *slot = queries.line(row, step);
                }
            }
        }
        // Keys that are not there hold what they held: nobody looks at their products.
        for (panel, first) in self.keys.chunks_exact_mut(steps * PANEL_STEP).zip((0..).step_by(TILE_COLUMNS)) {
            for (step, panel) in panel.as_chunks_mut::<PANEL_STEP>().0.iter_mut().enumerate() {
                for (half, lines) in panel.as_chunks_mut::<PAIRS>().0.iter_mut().enumerate() {
                    for place in 0..PAIRS.min(length.saturating_sub(first + half * PAIRS)) {
                        let key = keys.line(first + half * PAIRS + place, step);
                        for (line, pair) in lines.iter_mut().zip(key.0) {
                            if let Some(slot) = line.0.get_mut(place) {
                                *slot = pair;
                            }
                        }
                    }
                }
            }
        }
        // Values that are not there are zeros: their weights are nothing, but nothing times infinity would not be.
        let panels = length.div_ceil(STEP);
        for (step, panel) in self.values.chunks_exact_mut(panels * PANEL_STEP).enumerate() {
            for (place, panel) in panel.as_chunks_mut::<PANEL_STEP>().0.iter_mut().enumerate() {
                let (low, high) = panel.split_at_mut(PAIRS);
                for (pair, (low, high)) in low.iter_mut().zip(high).enumerate() {
                    let row = place * STEP + 2 * pair;
                    let value = |row| if row < length { values.line(row, step) } else { Line::default() };
                    [*low, *high] = interleaved(value(row), value(row + 1));
                }
            }
        }
    }
}

/// For each number of one line the pair of it and the other's.
#[inline(always)]
fn interleaved(first: Line, second: Line) -> [Line; 2] {
    let mut pairs = [[0u16; 2]; STEP];
    for (pair, both) in pairs.iter_mut().zip(first.numbers().into_iter().zip(second.numbers())) {
        *pair = [both.0, both.1];
    }
    let [low, high]: [[u32; PAIRS]; 2] = cast(pairs);
    [Line(low), Line(high)]
}

/// Of scores, e^(score - the largest) as the left of a product, and 1 / their sum for each row.
struct Softmax<'a> {
    scores: &'a mut [f32],
    rows: usize,
    /// Scores that count in each row; the row is filled up to a multiple of 32.
    length: usize,
    weights: &'a mut [Line],
    shares: &'a mut [f32; TILE_ROWS],
}

impl OnVectors for Softmax<'_> {
    #[inline(always)]
    fn run<S: Simd, R: Rounding>(self, simd: S, rounding: R) {
        let panels = self.length.div_ceil(TILE_COLUMNS);
        let rows = self.scores.chunks_exact_mut(panels * TILE_COLUMNS).take(self.rows);
        for (place, (row, share)) in rows.zip(self.shares).enumerate() {
            if let Some(padding) = row.get_mut(self.length..) {
                padding.fill(f32::MIN);
            }
            let largest = largest(simd, row);
            let mut sums = [simd.splat_f32s(0.0); 2];
            let slots = self.weights.iter_mut().skip(line_of(place, 0, panels)).step_by(BLOCK);
            for (numbers, slot) in row.as_chunks_mut::<STEP>().0.iter_mut().zip(slots) {
                for x in S::as_mut_simd_f32s(numbers).0 {
                    *x = exp_negative(simd, simd.sub_f32s(*x, largest));
                }
                *slot = rounding.line(numbers);
                // The sum of what was written, so that the weights are of one together.
                for pairs in S::as_simd_u32s(&slot.0).0 {
                    for (sum, x) in sums.iter_mut().zip(widened(simd, *pairs)) {
                        *sum = simd.add_f32s(*sum, x);
                    }
                }
            }
            *share = simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1])).recip();
        }
    }
}

/// The largest number of a row, in all lanes.
#[inline(always)]
fn largest<S: Simd>(simd: S, row: &[f32]) -> S::f32s {
    let mut largest = [simd.splat_f32s(f32::MIN); 2];
    for pair in S::as_simd_f32s(row).0.as_chunks::<2>().0 {
        for (largest, x) in largest.iter_mut().zip(pair) {
            *largest = simd.max_f32s(*largest, *x);
        }
    }
    simd.splat_f32s(simd.reduce_max_f32s(simd.max_f32s(largest[0], largest[1])))
}

/// Writes weighted sums of values to the columns of their head, each row multiplied by its share.
struct Shared<'a> {
    sums: &'a [f32],
    shares: [f32; TILE_ROWS],
    rows: usize,
    head_width: usize,
    /// Which row of the result the first one is.
    first: usize,
    /// The first column of the head: a multiple of 16.
    from: usize,
    /// Columns of the result.
    width: usize,
    out: &'a mut [Line],
}

impl OnVectors for Shared<'_> {
    #[inline(always)]
    fn run<S: Simd, R: Rounding>(self, simd: S, rounding: R) {
        let steps = self.width.div_ceil(STEP);
        let rows = self.sums.chunks_exact(self.head_width.next_multiple_of(TILE_COLUMNS)).take(self.rows);
        for (row, (sums, share)) in rows.zip(self.shares).enumerate() {
            for (sums, column) in sums.as_chunks::<STEP>().0.iter().zip((0..).step_by(STEP)) {
                let mut numbers = *sums;
                for x in S::as_mut_simd_f32s(&mut numbers).0 {
                    *x = simd.mul_f32s(*x, simd.splat_f32s(share));
                }
                let line = rounding.line(&numbers);
                let from = self.from + column;
                let place = |column: usize| line_of(self.first + row, column / STEP, steps);
                if from.is_multiple_of(STEP) && self.head_width - column >= STEP {
                    if let Some(slot) = self.out.get_mut(place(from)) {
                        *slot = line;
                    }
                    continue;
                }
                let halves: [[u32; HALF]; 2] = cast(line.0);
                for (half, from) in halves.into_iter().zip([from, from + STEP / 2]) {
                    let slots = self.out.get_mut(place(from)).map(|line| line.0.as_chunks_mut::<HALF>().0);
                    let slot = slots.and_then(|halves| halves.get_mut(from % STEP / (STEP / 2)));
                    if let (true, Some(slot)) = (from < self.from + self.head_width, slot) {
                        *slot = half;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::super::lines::tests::{at, lines};
    use super::*;
    use crate::bert::attention::tests::plain;
    use crate::bert::simd::tests::{cases, numbers, sizes};

    proptest! {
        #![proptest_config(cases(32))]

        #[test]
        fn attention_is_that_of_plain_sums_for_any_lengths_and_kernel(
            lengths in prop::collection::vec(sizes(1..70), 1..4),
            heads in sizes(1..4),
            blocks in sizes(1..5),
            cut in 0usize..=100,
            seed in any::<u32>(),
        ) {
            let head_width = 16 * blocks;
            let (width, rows) = (heads * head_width, lengths.iter().sum::<usize>());
            let qkv: Vec<f32> = numbers(seed).take(rows * 3 * width).collect();
            let qkv = lines(&qkv, 3 * width);
            let rounded = (0..rows).flat_map(|row| (0..3 * width).map(move |column| (row, column)));
            let rounded: Vec<f32> = rounded.map(|(row, column)| at(&qkv, 3 * width, row, column)).collect();
            let exact = plain(&rounded, &lengths, heads, head_width);
            for kernel in Kernel::of_this_processor() {
                let mut scratch = Scratch::default();
                // What an earlier, longer sequence left there must not matter.
                for lines in [&mut scratch.queries, &mut scratch.keys, &mut scratch.values, &mut scratch.weights] {
                    lines.first(10_000).fill(Line([0x7fc0_7fc0; PAIRS]));
                }
                scratch.scores.first(10_000).fill(f32::NAN);
                scratch.sums.first(10_000).fill(f32::NAN);
                let (lengths, qkv) = (lengths.as_slice(), qkv.as_slice());
                // In two calls, wherever the second begins.
                let cut = rows * cut / 100;
                for (first, count) in [(0, cut), (cut, rows - cut)] {
                    let mut out = vec![Line::default(); lines_of(count, width)];
                    let scratch = &mut scratch;
                    Attention { kernel, qkv, lengths, first, count, heads, head_width, scratch, out: &mut out }.run();
                    for (place, exact) in exact.iter().skip(first * width).take(count * width).enumerate() {
                        let ours = f64::from(at(&out, width, place / width, place % width));
                        // The result is rounded, and so is each weight: errors that are not all of one sign.
                        let allowed = exact.abs() / 256.0 + 1.0 / 512.0;
                        prop_assert!((ours - exact).abs() < allowed, "{kernel:?}: {ours} is not {exact}");
                    }
                    let rest = out.len() / width.div_ceil(STEP);
                    for (row, column) in (count..rest).flat_map(|row| (0..width).map(move |column| (row, column))) {
                        prop_assert!(at(&out, width, row, column) == 0.0, "{kernel:?} writes row {row} of {count}");
                    }
                }
            }
        }
    }
}
