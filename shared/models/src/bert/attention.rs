//! Self-attention over sequences that lie one after another, each attending to itself only: no padding, no mask.

use pulp::{Arch, Simd, WithSimd};

use super::aligned::Aligned;
use super::approximate;
use super::simd::{Tiles, exp_negative, rows, store};
use super::tile::{VECTORS, tile};

/// Rows of a tile, at most.
const MOST_ROWS: usize = 12;

/// Sequences and the shape of the heads.
pub(super) struct Attention<'a> {
    /// A row of query (already divided by the root of a head's width), key and value for each token.
    pub qkv: &'a [f32],
    /// Rows of each sequence.
    pub lengths: &'a [usize],
    /// The first row of `out` among those of all sequences.
    pub first: usize,
    pub heads: usize,
    /// Components of a head: a multiple of 16.
    pub head_width: usize,
    /// Whether what comes out is rounded at once, so that nearly exact weights are exact enough.
    pub rounded: bool,
    pub scratch: &'a mut Scratch,
    /// What tokens take from the others: a row of heads * `head_width` for each.
    pub out: &'a mut [f32],
}

impl Attention<'_> {
    /// Fills `out`.
    pub fn run(self, arch: Arch) {
        arch.dispatch(self);
    }
}

/// Memory for one head of a sequence.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Panels of keys: for each component as many keys as a panel is wide, the last one's end is zeros.
    keys: Aligned,
    /// Panels of values: for each token as many components as a panel is wide.
    values: Aligned,
    /// For each query of a tile its weight for each key.
    weights: Aligned,
}

impl WithSimd for Attention<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.heads * self.head_width;
        let panel = VECTORS * S::F32_LANES;
        let components = self.head_width.next_multiple_of(panel);
        let (mut qkv, mut rest) = (self.qkv, self.out);
        let (mut begin, mut next) = (0, self.first);
        for length in self.lengths {
            let (sequence, qkv_rest) = qkv.split_at(length * 3 * width);
            qkv = qkv_rest;
            let (skipped, end) = (next.saturating_sub(begin), begin + length);
            begin = end;
            let count = end.saturating_sub(next).min(rest.len() / width);
            if count == 0 {
                continue;
            }
            let (result, out_rest) = rest.split_at_mut(count * width);
            rest = out_rest;
            next += count;
            let padded = length.next_multiple_of(panel);
            let keys = self.scratch.keys.first(padded * self.head_width);
            let values = self.scratch.values.first(length * components);
            let weights = self.scratch.weights.first(MOST_ROWS * padded);
            for head in 0..self.heads {
                let from = head * self.head_width;
                let rows = |part: usize| {
                    let from = part * width + from;
                    let to = from + self.head_width;
                    sequence.chunks_exact(3 * width).map(move |row| row.get(from..to).unwrap_or(&[]))
                };
                lay_keys(rows(1), panel, self.head_width, keys);
                lay_values(rows(2), panel, *length, values);
                let queries = Queries {
                    simd,
                    sequence,
                    width,
                    from,
                    rounded: self.rounded,
                    head_width: self.head_width,
                    length: *length,
                    skipped,
                    keys,
                    values,
                    weights,
                    out: &mut *result,
                };
                queries.all::<S>(count);
            }
        }
    }
}

/// Brings keys into panels.
#[inline(always)]
fn lay_keys<'a>(rows: impl Iterator<Item = &'a [f32]>, panel: usize, components: usize, keys: &mut [f32]) {
    let begin = keys.len().saturating_sub(panel * components);
    if let Some(last) = keys.get_mut(begin..) {
        last.fill(0.0);
    }
    for (place, row) in rows.enumerate() {
        let slots = keys.iter_mut().skip(place / panel * panel * components + place % panel).step_by(panel);
        slots.zip(row).for_each(|(slot, x)| *slot = *x);
    }
}

/// Brings values into panels.
#[inline(always)]
fn lay_values<'a>(rows: impl Iterator<Item = &'a [f32]>, panel: usize, length: usize, values: &mut [f32]) {
    for (place, row) in rows.enumerate() {
        let slots =
            values.chunks_exact_mut(panel * length).filter_map(|values| values.chunks_exact_mut(panel).nth(place));
        for (slot, x) in slots.zip(row.chunks(panel)) {
            slot.iter_mut().zip(x).for_each(|(slot, x)| *slot = *x);
        }
    }
}

/// Queries of one head of one sequence.
struct Queries<'a, S: Simd> {
    simd: S,
    /// Rows of query, key and value.
    sequence: &'a [f32],
    /// Components of a query of all heads.
    width: usize,
    /// First component of this head.
    from: usize,
    rounded: bool,
    head_width: usize,
    length: usize,
    /// Rows before the first of these queries.
    skipped: usize,
    keys: &'a [f32],
    values: &'a [f32],
    weights: &'a mut [f32],
    out: &'a mut [f32],
}

impl<S: Simd> Tiles for Queries<'_, S> {
    /// softmax(queries * keys) * values.
    #[inline(always)]
    fn tile<const M: usize>(&mut self, first: usize) {
        let (simd, panel) = (self.simd, VECTORS * S::F32_LANES);
        let padded = self.length.next_multiple_of(panel);
        let (from, to) = (self.from, self.from + self.head_width);

        let queries = rows::<M>(self.sequence, 3 * self.width, self.skipped + first, from, to);
        for (place, keys) in self.keys.chunks_exact(panel * self.head_width).enumerate() {
            let products = tile::<S, M>(simd, queries, S::as_simd_f32s(keys).0.as_chunks().0);
            for (row, products) in products.iter().enumerate() {
                store::<S>(self.weights, padded, row, place * panel, (place + 1) * panel, *products);
            }
        }

        let mut shares = [0.0; M];
        for (row, share) in self.weights.chunks_exact_mut(padded).zip(&mut shares) {
            *share = softmax(simd, row, self.length, self.rounded);
        }

        let weights = rows::<M>(self.weights, padded, 0, 0, self.length);
        for (place, values) in self.values.chunks_exact(panel * self.length).enumerate() {
            let sums = tile::<S, M>(simd, weights, S::as_simd_f32s(values).0.as_chunks().0);
            let (from, to) = (from + place * panel, (from + (place + 1) * panel).min(to));
            for ((row, [a, b]), share) in sums.iter().enumerate().zip(shares) {
                let share = simd.splat_f32s(share);
                let weighted = [simd.mul_f32s(*a, share), simd.mul_f32s(*b, share)];
                store::<S>(self.out, self.width, first + row, from, to, weighted);
            }
        }
    }
}

/// The first `length` numbers become e^(x - the largest), what follows nearly nothing. Returns 1 / their sum.
#[inline(always)]
fn softmax<S: Simd>(simd: S, row: &mut [f32], length: usize, rounded: bool) -> f32 {
    if let Some(padding) = row.get_mut(length..) {
        padding.fill(f32::MIN);
    }
    let row = S::as_mut_simd_f32s(row).0.as_chunks_mut::<VECTORS>().0;
    let mut largest = [simd.splat_f32s(f32::MIN); VECTORS];
    for pair in row.iter() {
        for (largest, x) in largest.iter_mut().zip(pair) {
            *largest = simd.max_f32s(*largest, *x);
        }
    }
    let largest = simd.splat_f32s(simd.reduce_max_f32s(simd.max_f32s(largest[0], largest[1])));
    let sums = if rounded {
        exponentials::<S, true>(simd, row, largest)
    } else {
        exponentials::<S, false>(simd, row, largest)
    };
    simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1])).recip()
}

/// Makes e^(x - the largest) of the numbers, and adds them up.
#[inline(always)]
fn exponentials<S: Simd, const ROUNDED: bool>(
    simd: S,
    row: &mut [[S::f32s; VECTORS]],
    largest: S::f32s,
) -> [S::f32s; VECTORS] {
    let mut sums = [simd.splat_f32s(0.0); VECTORS];
    for pair in row {
        for (sum, x) in sums.iter_mut().zip(pair) {
            let below = simd.sub_f32s(*x, largest);
            *x = if ROUNDED { approximate::exp_negative(simd, below) } else { exp_negative(simd, below) };
            *sum = simd.add_f32s(*sum, *x);
        }
    }
    sums
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_precision_loss)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::simd::tests::{arches, cases, numbers, sizes};
    use super::*;

    /// In double precision, one number after another.
    pub fn plain(qkv: &[f32], lengths: &[usize], heads: usize, head_width: usize) -> Vec<f64> {
        let width = heads * head_width;
        let at = |token: usize, part: usize, head: usize, component: usize| {
            f64::from(qkv[token * 3 * width + part * width + head * head_width + component])
        };
        let mut out = vec![0.0; qkv.len() / 3];
        let mut begin = 0;
        for length in lengths {
            for (token, head) in (begin..begin + length).flat_map(|token| (0..heads).map(move |head| (token, head))) {
                let product = |key| (0..head_width).map(|c| at(token, 0, head, c) * at(key, 1, head, c)).sum::<f64>();
                let powers: Vec<f64> = (begin..begin + length).map(|key| product(key).exp()).collect();
                let sum: f64 = powers.iter().sum();
                for component in 0..head_width {
                    let value = |(i, power): (usize, &f64)| power / sum * at(begin + i, 2, head, component);
                    out[token * width + head * head_width + component] = powers.iter().enumerate().map(value).sum();
                }
            }
            begin += length;
        }
        out
    }

    proptest! {
        #![proptest_config(cases(32))]

        #[test]
        fn attention_is_that_of_plain_sums_for_any_lengths(
            lengths in prop::collection::vec(sizes(1..70), 1..4),
            heads in sizes(1..4),
            blocks in sizes(1..4),
            cut in 0usize..=100,
            seed in any::<u32>(),
        ) {
            let head_width = 16 * blocks;
            let rows: usize = lengths.iter().sum();
            let qkv: Vec<f32> = numbers(seed).take(rows * 3 * heads * head_width).collect();
            let exact = plain(&qkv, &lengths, heads, head_width);
            for (arch, rounded) in arches().into_iter().flat_map(|arch| [(arch, false), (arch, true)]) {
                let (mut scratch, mut out) = (Scratch::default(), vec![f32::NAN; exact.len()]);
                // What an earlier, longer sequence left there must not matter.
                scratch.keys.first(200 * head_width).fill(f32::NAN);
                scratch.weights.first(MOST_ROWS * 200).fill(f32::NAN);
                scratch.values.first(200 * head_width).fill(0.5);
                let (lengths, qkv) = (lengths.as_slice(), qkv.as_slice());
                // In two calls, wherever the second begins.
                let first = rows * cut / 100;
                let (before, behind) = out.split_at_mut(first * heads * head_width);
                for (first, out) in [(0, before), (first, behind)] {
                    let scratch = &mut scratch;
                    Attention { qkv, lengths, first, heads, head_width, rounded, scratch, out }.run(arch);
                }
                for (ours, exact) in out.iter().zip(&exact) {
                    let allowed = if rounded { 2e-4 } else { 1e-5 };
                    prop_assert!((f64::from(*ours) - exact).abs() < allowed, "{arch:?}: {ours} is not {exact}");
                }
            }
        }
    }
}
