//! The steps between the products, fused: one pass over memory each.

use pulp::{Arch, Simd, WithSimd};

use super::simd::gelu;

/// `rows` become gelu(row + bias).
pub(super) fn bias_gelu(rows: &mut [f32], bias: &[f32]) {
    Arch::new().dispatch(BiasGelu { rows, bias });
}

struct BiasGelu<'a> {
    rows: &'a mut [f32],
    bias: &'a [f32],
}

impl WithSimd for BiasGelu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (bias, _) = S::as_simd_f32s(self.bias);
        for row in self.rows.chunks_exact_mut(self.bias.len()) {
            let (row, _) = S::as_mut_simd_f32s(row);
            for (x, bias) in row.iter_mut().zip(bias) {
                *x = gelu(simd, simd.add_f32s(*x, *bias));
            }
        }
    }
}

/// Bias of a product, and scale and shift of the normalisation after it.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub bias: &'a [f32],
    pub scale: &'a [f32],
    pub shift: &'a [f32],
    pub epsilon: f32,
}

/// `rows` become the layer normalisation of row + bias + residual.
pub(super) fn add_norm(rows: &mut [f32], residual: &[f32], norm: Norm<'_>) {
    Arch::new().dispatch(AddNorm { rows, residual, norm });
}

struct AddNorm<'a> {
    rows: &'a mut [f32],
    residual: &'a [f32],
    norm: Norm<'a>,
}

impl WithSimd for AddNorm<'_> {
    type Output = ();

    #[inline(always)]
    #[allow(clippy::cast_precision_loss)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.norm.bias.len();
        let share = 1.0 / width as f32;
        let (bias, _) = S::as_simd_f32s(self.norm.bias);
        let (scale, _) = S::as_simd_f32s(self.norm.scale);
        let (shift, _) = S::as_simd_f32s(self.norm.shift);
        for (row, residual) in self.rows.chunks_exact_mut(width).zip(self.residual.chunks_exact(width)) {
            let (row, _) = S::as_mut_simd_f32s(row);
            let (residual, _) = S::as_simd_f32s(residual);
            let mut sum = simd.splat_f32s(0.0);
            for ((x, residual), bias) in row.iter_mut().zip(residual).zip(bias) {
                *x = simd.add_f32s(simd.add_f32s(*x, *bias), *residual);
                sum = simd.add_f32s(sum, *x);
            }
            let mean = simd.splat_f32s(simd.reduce_sum_f32s(sum) * share);
            let mut squares = simd.splat_f32s(0.0);
            for x in row.iter() {
                let apart = simd.sub_f32s(*x, mean);
                squares = simd.mul_add_e_f32s(apart, apart, squares);
            }
            let variance = simd.reduce_sum_f32s(squares) * share;
            let steepness = simd.splat_f32s((variance + self.norm.epsilon).sqrt().recip());
            for ((x, scale), shift) in row.iter_mut().zip(scale).zip(shift) {
                let normal = simd.mul_f32s(simd.sub_f32s(*x, mean), steepness);
                *x = simd.mul_add_e_f32s(normal, *scale, *shift);
            }
        }
    }
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
