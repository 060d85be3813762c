//! Functions whose results are rounded at once, to bf16 (relative error 2^-9) or to whole numbers of eight bits: exact
//! enough for that, and half the work of the ones in single precision.

use pulp::Simd;

/// e^x for x <= 0; below -87 it stays at e^-87, which is as good as zero. Relative error below 1e-4.
///
/// 2^n * 2^f with n the nearest integer to x / ln 2; 2^f by the polynomial of degree 3 that is nearest to it for
/// |f| <= 1/2 (Remez).
#[inline(always)]
pub(super) fn exp_negative<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    /// Added to a small number, it rounds it to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = simd.max_f32s(x, simd.splat_f32s(-87.0));
    let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), simd.splat_f32s(ROUND));
    let n = simd.sub_f32s(shifted, simd.splat_f32s(ROUND));
    let f = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), simd.neg_f32s(n));
    let mut p = simd.splat_f32s(0.055_171_672);
    for coefficient in [0.242_611_12, 0.693_261, 0.999_928_1] {
        p = simd.mul_add_e_f32s(p, f, simd.splat_f32s(coefficient));
    }
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(p), exponent))
}

/// GELU, x * (1 + erf(x / sqrt 2)) / 2. Absolute error below 2e-4, and below 4e-5 * |x| for x > 4.
///
/// The odd part of the normal distribution by the odd polynomial of degree 13 that is nearest for |x| <= 4 (Remez, the
/// error weighted with x) among those that are 1/2 at 4; beyond, 0 or x.
#[inline(always)]
pub(super) fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let near = simd.min_f32s(simd.max_f32s(x, simd.splat_f32s(-4.0)), simd.splat_f32s(4.0));
    let square = simd.mul_f32s(near, near);
    let mut p = simd.splat_f32s(2.259_807_7e-8);
    for coefficient in [-1.589_341_6e-6, 4.777_426_4e-5, -8.122_892e-4, 8.764_188e-3, -6.455_551e-2, 0.397_871_07] {
        p = simd.mul_add_e_f32s(p, square, simd.splat_f32s(coefficient));
    }
    simd.mul_f32s(x, simd.mul_add_e_f32s(near, p, simd.splat_f32s(0.5)))
}

#[cfg(test)]
#[allow(clippy::cast_precision_loss)]
mod tests {
    use pulp::WithSimd;

    use super::*;
    use crate::bert::simd::tests::{arches, exact_gelu, some};

    /// Applies a function to each number, on vectors.
    struct Map<'a>(&'a mut [f32], bool);

    impl WithSimd for Map<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for x in S::as_mut_simd_f32s(self.0).0 {
                *x = if self.1 { gelu(simd, *x) } else { exp_negative(simd, *x) };
            }
        }
    }

    #[test]
    fn exponentials_are_exact_enough_for_bf16() {
        let xs = some((0..16 * 1000).map(|i| -(i as f32) * 80.0 / 16_000.0));
        for arch in arches() {
            let mut ys = xs.clone();
            arch.dispatch(Map(&mut ys, false));
            for (x, y) in xs.iter().zip(&ys) {
                let exact = f64::from(*x).exp();
                assert!(((f64::from(*y) - exact) / exact).abs() < 1e-4, "{arch:?}: e^{x} is not {y}");
            }
        }
    }

    #[test]
    fn gelu_is_exact_enough_for_bf16() {
        let xs = some((-10_000..10_000).map(|i| i as f32 / 1_000.0));
        for arch in arches() {
            let mut ys = xs.clone();
            arch.dispatch(Map(&mut ys, true));
            for (x, y) in xs.iter().zip(&ys) {
                let exact = exact_gelu(f64::from(*x));
                assert!((f64::from(*y) - exact).abs() < 2e-4, "{arch:?}: gelu({x}) is {exact}, not {y}");
            }
        }
    }
}
