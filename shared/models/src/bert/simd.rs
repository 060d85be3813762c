//! Arithmetic on vectors of whatever width the processor has.

use pulp::Simd;

use super::tile::VECTORS;

/// e^x for x <= 0; below -87 it stays at e^-87, which is as good as zero. Relative error below 3e-7.
///
/// 2^n * e^r with n the nearest integer to x / ln 2 and |r| <= ln 2 / 2, e^r by its Taylor polynomial.
#[inline(always)]
pub(super) fn exp_negative<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    /// Added to a small number, it rounds it to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first exact in few bits, so that n times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = simd.max_f32s(x, simd.splat_f32s(-87.0));
    let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), simd.splat_f32s(ROUND));
    let n = simd.sub_f32s(shifted, simd.splat_f32s(ROUND));
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN_2_HIGH), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN_2_LOW), r);
    let mut p = simd.splat_f32s(1.0 / 720.0);
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(coefficient));
    }
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(p), exponent))
}

/// The exact GELU, x * (1 + erf(x / sqrt 2)) / 2, with erf by Abramowitz and Stegun 7.1.26 (error below 1.5e-7).
#[inline(always)]
pub(super) fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let magnitude = simd.abs_f32s(x);
    let z = simd.mul_f32s(magnitude, simd.splat_f32s(std::f32::consts::FRAC_1_SQRT_2));
    let t =
        simd.div_f32s(simd.splat_f32s(1.0), simd.mul_add_e_f32s(z, simd.splat_f32s(0.327_591_1), simd.splat_f32s(1.0)));
    let mut p = simd.splat_f32s(1.061_405_4);
    for coefficient in [-1.453_152_1, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
        p = simd.mul_add_e_f32s(p, t, simd.splat_f32s(coefficient));
    }
    let power = exp_negative(simd, simd.mul_f32s(simd.neg_f32s(z), z));
    // What erf(|x| / sqrt 2) lacks to 1, halved.
    let lacks = simd.mul_f32s(simd.mul_f32s(simd.mul_f32s(p, t), power), simd.splat_f32s(0.5));
    simd.sub_f32s(simd.max_f32s(x, simd.splat_f32s(0.0)), simd.mul_f32s(magnitude, lacks))
}

/// Columns `from..to` of the `M` rows from `first` on, each so long; those that are not there are empty.
#[inline(always)]
pub(super) fn rows<const M: usize>(all: &[f32], length: usize, first: usize, from: usize, to: usize) -> [&[f32]; M] {
    // `std::array::from_fn` is not always inlined, which short tiles feel.
    let mut rows: [&[f32]; M] = [&[]; M];
    for (place, row) in rows.iter_mut().enumerate() {
        let begin = (first + place) * length;
        *row = all.get(begin + from..begin + to).unwrap_or(&[]);
    }
    rows
}

/// What stands in columns `from..to` of a row, as vectors; zeros where there is nothing.
#[inline(always)]
pub(super) fn load<S: Simd>(
    simd: S,
    all: &[f32],
    length: usize,
    row: usize,
    from: usize,
    to: usize,
) -> [S::f32s; VECTORS] {
    let begin = row * length;
    let zero = simd.splat_f32s(0.0);
    // In full, not a loop: a number of rounds that is not known keeps the sums of a tile in memory.
    match all.get(begin + from..begin + to).map_or(&[][..], |row| S::as_simd_f32s(row).0) {
        [a, b, ..] => [*a, *b],
        [a] => [*a, zero],
        [] => [zero, zero],
    }
}

/// Writes vectors to columns `from..to` of a row, as far as they go.
#[inline(always)]
pub(super) fn store<S: Simd>(
    all: &mut [f32],
    length: usize,
    row: usize,
    from: usize,
    to: usize,
    x: [S::f32s; VECTORS],
) {
    let begin = row * length;
    match all.get_mut(begin + from..begin + to).map_or(&mut [][..], |row| S::as_mut_simd_f32s(row).0) {
        [a, b, ..] => (*a, *b) = (x[0], x[1]),
        [a] => *a = x[0],
        [] => {}
    }
}

/// Work on rows that is done a tile of them at a time.
pub(super) trait Tiles: Sized {
    /// The `M` rows from `first` on.
    fn tile<const M: usize>(&mut self, first: usize);

    /// The first `count` rows, in tiles as high as the registers allow; the last few in one of their own.
    #[inline(always)]
    fn all<S: Simd>(mut self, count: usize) {
        let mut first = 0;
        if S::REGISTER_COUNT >= 32 {
            while count - first >= 12 {
                self.tile::<12>(first);
                first += 12;
            }
        }
        while count - first >= 6 {
            self.tile::<6>(first);
            first += 6;
        }
        match count - first {
            0 => {}
            1 => self.tile::<1>(first),
            2 => self.tile::<2>(first),
            3 => self.tile::<3>(first),
            4 => self.tile::<4>(first),
            _ => self.tile::<5>(first),
        }
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
pub(super) mod tests {
    use std::ops::Range;

    use proptest::test_runner::Config;
    use pulp::{Arch, WithSimd};

    use super::*;

    /// So many cases of a property. Two under Miri, which takes a thousand times as long for each.
    pub fn cases(count: u32) -> Config {
        Config::with_cases(if cfg!(miri) { 2 } else { count })
    }

    /// A range of sizes; its lower quarter under Miri.
    pub fn sizes(range: Range<usize>) -> Range<usize> {
        if cfg!(miri) { range.start..range.start + range.len().div_ceil(4) } else { range }
    }

    /// All numbers; one of a hundred under Miri. As vectors they still have no rest.
    pub fn some(numbers: impl Iterator<Item = f32>) -> Vec<f32> {
        let mut some: Vec<f32> = numbers.step_by(if cfg!(miri) { 100 } else { 1 }).collect();
        some.truncate(some.len() / 16 * 16);
        some
    }

    /// Applies a function to each number, on vectors.
    struct Map<'a>(&'a mut [f32], bool);

    impl WithSimd for Map<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (vectors, rest) = S::as_mut_simd_f32s(self.0);
            assert!(rest.is_empty());
            for x in vectors {
                *x = if self.1 { gelu(simd, *x) } else { exp_negative(simd, *x) };
            }
        }
    }

    /// What this processor has, and what every processor has.
    pub fn arches() -> [Arch; 2] {
        [Arch::new(), Arch::Scalar]
    }

    /// Numbers between -1 and 1 that look random, always the same ones for a seed.
    pub fn numbers(seed: u32) -> impl Iterator<Item = f32> {
        let step = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
        std::iter::successors(Some(seed), step).map(|state| (state >> 8) as f32 / 8_388_608.0 - 1.0)
    }

    /// The exact GELU, x * (1 + erf(x / sqrt 2)) / 2.
    pub fn exact_gelu(x: f64) -> f64 {
        x * (1.0 + erf(x / std::f64::consts::SQRT_2)) / 2.0
    }

    fn erf(x: f64) -> f64 {
        // Maclaurin series; converges everywhere, accurate enough up to 4.5 in double precision.
        if x.abs() > 4.5 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
            if term.abs() < 1e-18 {
                break;
            }
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn exponentials_are_exact_to_a_few_ulps() {
        let xs = some((0..16 * 5000).map(|i| -(i as f32) * 80.0 / 80_000.0));
        for arch in arches() {
            let mut ys = xs.clone();
            arch.dispatch(Map(&mut ys, false));
            for (x, y) in xs.iter().zip(&ys) {
                let exact = f64::from(*x).exp();
                assert!(((f64::from(*y) - exact) / exact).abs() < 3e-7, "{arch:?}: e^{x} is not {y}");
            }
        }
    }

    #[test]
    fn gelu_is_the_exact_one() {
        let xs = some((-40_000..40_000).map(|i| i as f32 / 8_000.0));
        for arch in arches() {
            let mut ys = xs.clone();
            arch.dispatch(Map(&mut ys, true));
            for (x, y) in xs.iter().zip(&ys) {
                let exact = exact_gelu(f64::from(*x));
                assert!((f64::from(*y) - exact).abs() < 1e-6, "{arch:?}: gelu({x}) is {exact}, not {y}");
            }
        }
    }
}
