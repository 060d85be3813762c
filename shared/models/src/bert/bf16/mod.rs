//! The model on the processor with products of numbers rounded to bf16. They are added up in single precision, and so is
//! everything between the products: residuals, norms, softmax. Half the memory, and many times the speed where the
//! processor multiplies bf16.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod layer;
mod lines;
mod portable;
mod product;

use pulp::{Arch, Simd, WithSimd};

use super::layer::arch_name;
use super::lines::Line;
use lines::{BLOCK, STEP};

/// Rows of a tile of sums, at most: two blocks.
const TILE_ROWS: usize = 2 * BLOCK;
/// Columns of a panel: two lines of sums.
const TILE_COLUMNS: usize = 32;
/// Lines of a step of a panel: for each pair of rows of the weights a line of its left and, after all of those, one of
/// its right half.
const PANEL_STEP: usize = STEP / 2 * 2;

/// How products of bf16 are computed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kernel {
    /// In single precision, after widening.
    Widening(Arch),
    /// By AVX512-BF16: sums of pairs, a vector at a time.
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    /// By AMX-BF16: a tile at a time.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(amx::Amx),
}

impl Kernel {
    /// The fastest that this processor has.
    pub fn fastest() -> Self {
        Self::of_this_processor().pop().unwrap_or(Self::Widening(Arch::Scalar))
    }

    /// All that this processor has, the fastest last.
    pub fn of_this_processor() -> Vec<Self> {
        let mut kernels = vec![Self::Widening(Arch::Scalar), Self::Widening(Arch::new())];
        #[cfg(target_arch = "x86_64")]
        kernels.extend(avx512::Avx512::detect().map(Self::Avx512));
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        kernels.extend(amx::Amx::detect().map(Self::Amx));
        kernels
    }

    /// Whether the processor itself multiplies bf16.
    pub fn is_native(self) -> bool {
        !matches!(self, Self::Widening(_))
    }

    /// Whether it computes a tile at a time.
    fn is_tiled(self) -> bool {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(_) => true,
            _ => false,
        }
    }

    /// As logs have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Widening(arch) => arch_name(arch),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512-bf16",
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(_) => "amx-bf16",
        }
    }

    /// The vectors for what is done in single precision.
    pub fn arch(self) -> Arch {
        match self {
            Self::Widening(arch) => arch,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(kernel) => kernel.arch(),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(kernel) => kernel.vectors().arch(),
        }
    }

    /// Prepares this thread for products; what it holds goes when the engine does.
    fn start(self) -> Engine {
        match self {
            Self::Widening(arch) => Engine::Widening(arch),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(kernel) => Engine::Avx512(kernel),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(kernel) => Engine::Amx(kernel.configure()),
        }
    }

    /// Does work on vectors, with the processor's own rounding where it has it.
    #[inline(always)]
    fn dispatch<W: OnVectors>(self, work: W) {
        match self {
            Self::Widening(arch) => arch.dispatch(ByArithmetic(work)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(kernel) => kernel.dispatch(work),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(kernel) => kernel.vectors().dispatch(work),
        }
    }

    /// Floating-point operations a second that one thread reaches at best.
    pub fn peak_flops(self) -> f64 {
        match self {
            Self::Widening(arch) => crate::peak::single(arch),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(kernel) => kernel.peak_flops(),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(kernel) => kernel.configure().peak_flops(),
        }
    }
}

/// A kernel, ready on this thread.
enum Engine {
    Widening(Arch),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(amx::Tiles),
}

impl Engine {
    /// sums = left * panels.
    ///
    /// # Panics
    /// When the parts of the product do not fit together.
    #[inline]
    fn multiply(&self, product: Product<'_>) {
        let Product { left, rows, steps, panels, ref sums } = product;
        let blocks = rows.div_ceil(BLOCK);
        let count = panels.len() / (steps * PANEL_STEP);
        assert!(
            (1..=TILE_ROWS).contains(&rows)
                && left.len() >= blocks * BLOCK * steps
                && panels.len() == count * steps * PANEL_STEP
                && sums.len() >= blocks * BLOCK * count * TILE_COLUMNS,
            "a product of {rows} rows in {} lines and {} lines of weights, {steps} steps deep, into {} sums",
            left.len(),
            panels.len(),
            sums.len()
        );
        match self {
            Self::Widening(arch) => portable::multiply(*arch, product),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(kernel) => kernel.multiply(product),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(tiles) => tiles.multiply(product),
        }
    }
}

/// A few rows times some panels of weights.
struct Product<'a> {
    /// One or two blocks of rows.
    left: &'a [Line],
    /// How many of their rows there are.
    rows: usize,
    /// Depth in lines, at least one.
    steps: usize,
    /// Panels of 32 columns, one after another: `PANEL_STEP` lines for each step.
    panels: &'a [Line],
    /// For each row of the blocks the sums of all panels. Those of rows that are not there hold anything.
    sums: &'a mut [f32],
}

/// Work on vectors that needs rounding.
trait OnVectors {
    fn run<S: Simd, R: Rounding>(self, simd: S, rounding: R);
}

/// A way to round to bf16.
trait Rounding: Copy {
    fn line(self, numbers: &[f32; STEP]) -> Line;
}

/// Rounding where the processor has no instruction for it.
#[derive(Clone, Copy)]
struct ByBits;

impl Rounding for ByBits {
    #[inline(always)]
    fn line(self, numbers: &[f32; STEP]) -> Line {
        Line::rounded(numbers)
    }
}

/// Work, with that rounding.
struct ByArithmetic<W>(W);

impl<W: OnVectors> WithSimd for ByArithmetic<W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.0.run(simd, ByBits);
    }
}

/// Brings rows in single precision into blocks of lines, rounded.
struct Lay<'a> {
    rows: &'a [f32],
    width: usize,
    to: &'a mut [Line],
}

impl OnVectors for Lay<'_> {
    #[inline(always)]
    fn run<S: Simd, R: Rounding>(self, _: S, rounding: R) {
        let steps = self.width.div_ceil(STEP);
        let blocks = self.rows.chunks(BLOCK * self.width).zip(self.to.chunks_exact_mut(BLOCK * steps));
        for (rows, block) in blocks {
            for (place, row) in rows.chunks_exact(self.width).enumerate() {
                let slots = block.iter_mut().skip(place).step_by(BLOCK);
                let (lines, rest) = row.as_chunks();
                let mut slots = slots.fuse();
                for (numbers, slot) in lines.iter().zip(slots.by_ref()) {
                    *slot = rounding.line(numbers);
                }
                if let (false, Some(slot)) = (rest.is_empty(), slots.next()) {
                    let mut numbers = [0.0; STEP];
                    numbers.iter_mut().zip(rest).for_each(|(slot, x)| *slot = *x);
                    *slot = rounding.line(&numbers);
                }
            }
        }
    }
}
