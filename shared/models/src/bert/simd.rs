//! Arithmetic on vectors of whatever width the processor has.

use pulp::Simd;

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

/// The product of a panel of `M` columns, transposed, and a panel of `N` vectors: for each pair the sum over the rows
/// both have. All of it stays in registers.
#[inline(always)]
pub(super) fn tile<S: Simd, const M: usize, const N: usize>(
    simd: S,
    left: &[[f32; M]],
    right: &[[S::f32s; N]],
) -> [[S::f32s; N]; M] {
    let mut sums = [[simd.splat_f32s(0.0); N]; M];
    for (left, right) in left.iter().zip(right) {
        for (sums, left) in sums.iter_mut().zip(left) {
            let left = simd.splat_f32s(*left);
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = simd.mul_add_e_f32s(left, *right, *sum);
            }
        }
    }
    sums
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
mod tests {
    use pulp::{Arch, WithSimd};

    use super::*;

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

    fn erf(x: f64) -> f64 {
        // Maclaurin series; converges everywhere, accurate enough up to 4 in double precision.
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn exponentials_are_exact_to_a_few_ulps() {
        let xs: Vec<f32> = (0..16 * 5000).map(|i| -(i as f32) * 80.0 / 80_000.0).collect();
        for arch in [Arch::new(), Arch::Scalar] {
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
        let xs: Vec<f32> = (-40_000..40_000).map(|i| i as f32 / 8_000.0).collect();
        for arch in [Arch::new(), Arch::Scalar] {
            let mut ys = xs.clone();
            arch.dispatch(Map(&mut ys, true));
            for (x, y) in xs.iter().zip(&ys) {
                let exact = f64::from(*x) * (1.0 + erf(f64::from(*x) / std::f64::consts::SQRT_2)) / 2.0;
                assert!((f64::from(*y) - exact).abs() < 1e-6, "{arch:?}: gelu({x}) is {exact}, not {y}");
            }
        }
    }
}
