//! Self-attention over sequences that lie one after another, each attending to itself only: no padding, no mask.

use pulp::{Arch, Simd, WithSimd};

use super::simd::{exp_negative, tile};

/// Sequences and the shape of the heads.
#[derive(Clone, Copy)]
pub(super) struct Attention<'a> {
    /// A row of query, key and value for each token, without their bias.
    pub qkv: &'a [f32],
    /// Bias of a row of `qkv`.
    pub bias: &'a [f32],
    /// Rows of each sequence.
    pub lengths: &'a [usize],
    pub heads: usize,
    /// Components of a head: a multiple of 8.
    pub head_width: usize,
}

impl Attention<'_> {
    /// What each token takes from the others: a row of heads * `head_width` for each.
    pub fn run(self) -> Vec<f32> {
        Arch::new().dispatch(self)
    }
}

impl WithSimd for Attention<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        // Sums of a tile, vectors of the right side and one of the left must fit into the registers.
        if S::REGISTER_COUNT >= 32 { self.with_tile::<S, 8>(simd) } else { self.with_tile::<S, 4>(simd) }
    }
}

impl Attention<'_> {
    /// Queries lie in the lanes of vectors, keys and components of values in the rows of a tile: then the softmax
    /// needs no sums across lanes, and the weights come out of it in the layout that the second product takes.
    #[inline(always)]
    fn with_tile<S: Simd, const M: usize>(self, simd: S) -> Vec<f32> {
        let width = self.heads * self.head_width;
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        let mut scratch = Scratch::<M>::new(longest, self.head_width, 2 * S::F32_LANES);
        let mut out = vec![0f32; self.qkv.len() / 3];
        let (mut qkv, mut rest) = (self.qkv, out.as_mut_slice());
        for length in self.lengths {
            let (sequence, qkv_rest) = qkv.split_at(length * 3 * width);
            let (result, out_rest) = std::mem::take(&mut rest).split_at_mut(length * width);
            (qkv, rest) = (qkv_rest, out_rest);
            for head in 0..self.heads {
                let head = Head { sequence, bias: self.bias, width, from: head * self.head_width };
                scratch.keys_and_values(head, *length, self.head_width);
                self.queries::<S, M>(simd, head, *length, &mut scratch, result);
            }
        }
        out
    }

    /// All queries of a head, so many at a time as two vectors have lanes, the last few with one vector.
    #[inline(always)]
    fn queries<S: Simd, const M: usize>(
        self,
        simd: S,
        head: Head<'_>,
        length: usize,
        scratch: &mut Scratch<M>,
        result: &mut [f32],
    ) {
        let mut from = 0;
        while from < length {
            let left = length - from;
            let lanes = if left > S::F32_LANES { 2 * S::F32_LANES } else { S::F32_LANES };
            scratch.queries(head, from, left.min(lanes), lanes, self.head_width);
            if left > S::F32_LANES {
                scratch.attend::<S, 2>(simd, length, self.head_width);
            } else {
                scratch.attend::<S, 1>(simd, length, self.head_width);
            }
            scratch.put(head, from, lanes, self.head_width, result);
            from += lanes;
        }
    }
}

/// One head of one sequence.
#[derive(Clone, Copy)]
struct Head<'a> {
    /// Rows of query, key and value.
    sequence: &'a [f32],
    bias: &'a [f32],
    /// Components of a query.
    width: usize,
    /// First component of this head.
    from: usize,
}

impl<'a> Head<'a> {
    /// This head's part of each row and of the bias: `part` 0 is the query, 1 the key, 2 the value.
    #[inline(always)]
    fn part(self, part: usize, components: usize) -> (impl Iterator<Item = &'a [f32]>, &'a [f32]) {
        let from = part * self.width + self.from;
        let of = move |row: &'a [f32]| row.get(from..from + components).unwrap_or(&[]);
        (self.sequence.chunks_exact(3 * self.width).map(of), of(self.bias))
    }
}

/// Memory for one head of the longest sequence.
struct Scratch<const M: usize> {
    /// Panels of M keys: for each component M numbers.
    keys: Vec<[f32; M]>,
    /// Panels of M components: for each value M numbers.
    values: Vec<[f32; M]>,
    /// For each component as many queries as there are lanes.
    queries: Vec<f32>,
    /// For each key its weight for each of these queries.
    weights: Vec<f32>,
    /// For each component the result for each of these queries.
    results: Vec<f32>,
}

impl<const M: usize> Scratch<M> {
    fn new(longest: usize, components: usize, lanes: usize) -> Self {
        Self {
            keys: vec![[0.0; M]; longest.div_ceil(M) * components],
            values: vec![[0.0; M]; longest * components.div_ceil(M)],
            queries: vec![0.0; components * lanes],
            weights: vec![0.0; longest.next_multiple_of(M) * lanes],
            results: vec![0.0; components * lanes],
        }
    }

    /// Brings keys and values into panels.
    #[inline(always)]
    fn keys_and_values(&mut self, head: Head<'_>, length: usize, components: usize) {
        let (rows, bias) = head.part(1, components);
        for (place, row) in rows.enumerate() {
            let panel = self.keys.iter_mut().skip(place / M * components);
            for ((slot, x), bias) in panel.zip(row).zip(bias) {
                if let Some(slot) = slot.get_mut(place % M) {
                    *slot = x + bias;
                }
            }
        }
        let (rows, bias) = head.part(2, components);
        for (place, row) in rows.enumerate() {
            let panels = self.values.chunks_exact_mut(length).filter_map(|panel| panel.get_mut(place));
            for ((slot, x), bias) in panels.zip(row.chunks_exact(M)).zip(bias.chunks_exact(M)) {
                slot.iter_mut().zip(x).zip(bias).for_each(|((slot, x), bias)| *slot = x + bias);
            }
        }
    }

    /// Brings queries `from..from + count` into the lanes, divided by the root of the head's width.
    #[inline(always)]
    #[allow(clippy::cast_precision_loss)]
    fn queries(&mut self, head: Head<'_>, from: usize, count: usize, lanes: usize, components: usize) {
        let scale = (components as f32).sqrt().recip();
        let (rows, bias) = head.part(0, components);
        if count < lanes {
            self.queries.fill(0.0);
        }
        for (lane, row) in rows.skip(from).take(count).enumerate() {
            for ((slots, x), bias) in self.queries.chunks_exact_mut(lanes).zip(row).zip(bias) {
                if let Some(slot) = slots.get_mut(lane) {
                    *slot = (x + bias) * scale;
                }
            }
        }
    }

    /// softmax(keys * queries) * values for the queries in the lanes of `N` vectors.
    #[inline(always)]
    fn attend<S: Simd, const N: usize>(&mut self, simd: S, length: usize, components: usize) {
        let queries = S::as_simd_f32s(&self.queries).0.as_chunks::<N>().0;
        let (weights, _) = S::as_mut_simd_f32s(&mut self.weights).0.as_chunks_mut::<N>();
        for (panel, weights) in
            self.keys.chunks_exact(components).zip(weights.chunks_exact_mut(M)).take(length.div_ceil(M))
        {
            weights.copy_from_slice(&tile::<S, M, N>(simd, panel, queries));
        }
        let Some(weights) = weights.get_mut(..length) else { return };
        let mut largest = [simd.splat_f32s(f32::MIN); N];
        for row in weights.iter() {
            for (largest, x) in largest.iter_mut().zip(row) {
                *largest = simd.max_f32s(*largest, *x);
            }
        }
        let mut sum = [simd.splat_f32s(0.0); N];
        for row in weights.iter_mut() {
            for ((x, largest), sum) in row.iter_mut().zip(largest).zip(&mut sum) {
                *x = exp_negative(simd, simd.sub_f32s(*x, largest));
                *sum = simd.add_f32s(*sum, *x);
            }
        }
        for sum in &mut sum {
            *sum = simd.div_f32s(simd.splat_f32s(1.0), *sum);
        }
        let (results, _) = S::as_mut_simd_f32s(&mut self.results).0.as_chunks_mut::<N>();
        for (panel, results) in self.values.chunks_exact(length).zip(results.chunks_exact_mut(M)).take(components / M) {
            for (result, row) in results.iter_mut().zip(tile::<S, M, N>(simd, panel, weights)) {
                for ((result, x), share) in result.iter_mut().zip(row).zip(sum) {
                    *result = simd.mul_f32s(x, share);
                }
            }
        }
    }

    /// Writes the results of queries from `from` on to their rows.
    #[inline(always)]
    fn put(&self, head: Head<'_>, from: usize, lanes: usize, components: usize, result: &mut [f32]) {
        for (lane, row) in result.chunks_exact_mut(head.width).skip(from).take(lanes).enumerate() {
            for (slot, column) in row.iter_mut().skip(head.from).take(components).zip(self.results.chunks_exact(lanes))
            {
                if let Some(x) = column.get(lane) {
                    *slot = *x;
                }
            }
        }
    }
}
