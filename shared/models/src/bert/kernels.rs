//! The steps between the products: one pass over memory each.

use pulp::{Arch, Simd, WithSimd};

/// A layer normalisation.
#[derive(Debug)]
pub(super) struct Norm {
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
    pub epsilon: f32,
}

impl Norm {
    /// Normalises each row in its place.
    pub fn apply(&self, arch: Arch, rows: &mut [f32]) {
        arch.dispatch(Normalise { norm: self, rows });
    }
}

struct Normalise<'a> {
    norm: &'a Norm,
    rows: &'a mut [f32],
}

impl WithSimd for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    #[allow(clippy::cast_precision_loss)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.norm.scale.len();
        let share = 1.0 / width as f32;
        let (scale, _) = S::as_simd_f32s(&self.norm.scale);
        let (shift, _) = S::as_simd_f32s(&self.norm.shift);
        for row in self.rows.chunks_exact_mut(width) {
            let row = S::as_mut_simd_f32s(row).0;
            let sum = sum_of(simd, row, |x| x, |x, sum| simd.add_f32s(x, sum));
            let mean = simd.splat_f32s(sum * share);
            let apart = |x| simd.sub_f32s(x, mean);
            let squares = sum_of(simd, row, apart, |apart, sum| simd.mul_add_e_f32s(apart, apart, sum));
            let variance = squares * share;
            let steepness = simd.splat_f32s((variance + self.norm.epsilon).sqrt().recip());
            for ((x, scale), shift) in row.iter_mut().zip(scale).zip(shift) {
                let normal = simd.mul_f32s(simd.sub_f32s(*x, mean), steepness);
                *x = simd.mul_add_e_f32s(normal, *scale, *shift);
            }
        }
    }
}

/// The sum of what `part` makes of each number, added by `add`.
#[inline(always)]
fn sum_of<S: Simd>(
    simd: S,
    row: &[S::f32s],
    part: impl Fn(S::f32s) -> S::f32s,
    add: impl Fn(S::f32s, S::f32s) -> S::f32s,
) -> f32 {
    // Several sums side by side: one alone would wait for each addition.
    let mut sums = [simd.splat_f32s(0.0); 4];
    let (fours, rest) = row.as_chunks::<4>();
    for four in fours {
        for (sum, x) in sums.iter_mut().zip(four) {
            *sum = add(part(*x), *sum);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum = add(part(*x), *sum);
    }
    simd.reduce_sum_f32s(sums.into_iter().fold(simd.splat_f32s(0.0), |a, b| simd.add_f32s(a, b)))
}

/// The mean of a sequence's rows, scaled to unit length.
pub(super) fn mean_unit(rows: &[f32], width: usize) -> Vec<f32> {
    let mut mean = vec![0f32; width];
    for row in rows.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x);
    }
    // Dividing by the number of rows would change the length only.
    let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    mean.iter_mut().for_each(|x| *x /= length);
    mean
}

#[cfg(test)]
#[allow(clippy::cast_precision_loss)]
mod tests {
    use proptest::prelude::*;

    use super::super::simd::tests::{arches, cases, numbers, sizes};
    use super::*;

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn rows_are_normalised_as_plain_sums_do_it(rows in sizes(0..9), blocks in sizes(1..30), seed in any::<u32>()) {
            let width = 16 * blocks;
            let mut random = numbers(seed);
            let mut some = |count: usize| -> Vec<f32> { random.by_ref().take(count).collect() };
            let (x, norm) = (some(rows * width), Norm { scale: some(width), shift: some(width), epsilon: 1e-6 });
            for arch in arches() {
                let mut ours = x.clone();
                norm.apply(arch, &mut ours);
                for (row, ours) in x.chunks_exact(width).zip(ours.chunks_exact(width)) {
                    let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
                    let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / width as f64;
                    for (((x, ours), scale), shift) in row.iter().zip(ours).zip(&norm.scale).zip(&norm.shift) {
                        let normal = (f64::from(*x) - mean) / (variance + 1e-6).sqrt();
                        let exact = normal * f64::from(*scale) + f64::from(*shift);
                        prop_assert!((f64::from(*ours) - exact).abs() < 1e-5, "{arch:?}: {ours} is not {exact}");
                    }
                }
            }
        }
    }
}
