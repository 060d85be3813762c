//! The model on the processor with products of whole numbers of eight bits. Rows are brought to 0 to 255, each by its own
//! scale, when a product needs them, and weights once, each column by its own. The sums are exact, so that all kernels
//! give the same vectors; everything between the products is in single precision.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod product;
mod products;
mod quantised;

use pulp::Arch;

use super::layer::arch_name;
use super::lines::{Line, WORDS};

/// Numbers in a line: how far a step of a product goes into the depth.
const STEP: usize = 64;
/// Rows of a tile of sums, at most.
const TILE_ROWS: usize = 32;
/// Rows that a kernel may read at a time, whether there are as many or not.
const BLOCK: usize = 16;
/// Columns of a panel: two lines of sums.
const TILE_COLUMNS: usize = 2 * WORDS;
/// Lines of a step of a panel: for every four rows of the weights a line of its left and, after all of those, one of its
/// right half.
const PANEL_STEP: usize = STEP / 4 * 2;

/// How products of whole numbers are computed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kernel {
    /// By plain code.
    Plain(Arch),
    /// By AVX2: sums of pairs, then of fours, a vector at a time.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    /// By AVX512-VNNI: sums of fours, a vector at a time.
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    /// By AMX-INT8: a tile at a time.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(amx::Amx),
}

impl Kernel {
    /// The fastest that this processor has.
    pub fn fastest() -> Self {
        Self::of_this_processor().pop().unwrap_or(Self::Plain(Arch::Scalar))
    }

    /// All that this processor has, the fastest last.
    pub fn of_this_processor() -> Vec<Self> {
        let mut kernels = vec![Self::Plain(Arch::Scalar), Self::Plain(Arch::new())];
        #[cfg(target_arch = "x86_64")]
        kernels.extend(avx2::Avx2::detect().map(Self::Avx2));
        #[cfg(target_arch = "x86_64")]
        kernels.extend(avx512::Avx512::detect().map(Self::Avx512));
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        kernels.extend(amx::Amx::detect().map(Self::Amx));
        kernels
    }

    /// As logs have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain(arch) => arch_name(arch),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2-int8",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512-vnni",
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(_) => "amx-int8",
        }
    }

    /// The vectors for what is done in single precision.
    pub fn arch(self) -> Arch {
        match self {
            Self::Plain(arch) => arch,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(kernel) => kernel.arch(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(kernel) => kernel.arch(),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(kernel) => kernel.vectors().arch(),
        }
    }

    /// Prepares this thread for products; what it holds goes when the engine does.
    fn start(self) -> Engine {
        match self {
            Self::Plain(arch) => Engine::Plain(arch),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(kernel) => Engine::Avx2(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(kernel) => Engine::Avx512(kernel),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(kernel) => Engine::Amx(kernel.configure()),
        }
    }

    /// Operations a second, products and sums, that one thread reaches at best.
    pub fn peak_operations(self) -> f64 {
        match self {
            Self::Plain(arch) => crate::peak::single(arch),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(kernel) => kernel.peak_operations(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(kernel) => kernel.peak_operations(),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(kernel) => kernel.configure().peak_operations(),
        }
    }
}

/// A kernel, ready on this thread.
enum Engine {
    Plain(Arch),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(amx::Tiles),
}

impl Engine {
    /// sums = left * panel.
    ///
    /// # Panics
    /// When the parts of the product do not fit together.
    #[inline]
    fn multiply(&self, product: Product<'_>) {
        let Product { left, rows, panel, ref sums } = product;
        let steps = panel.len() / PANEL_STEP;
        assert!(
            (1..=TILE_ROWS).contains(&rows)
                && steps > 0
                && panel.len() == steps * PANEL_STEP
                && left.len() >= rows.next_multiple_of(BLOCK) * steps
                && sums.len() == TILE_ROWS * TILE_COLUMNS,
            "a product of {rows} rows in {} lines and {} lines of weights into {} sums",
            left.len(),
            panel.len(),
            sums.len()
        );
        match self {
            Self::Plain(arch) => portable::multiply(*arch, product),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(kernel) => kernel.multiply(product),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(kernel) => kernel.multiply(product),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(tiles) => tiles.multiply(product),
        }
    }
}

/// A few rows times a panel of weights.
struct Product<'a> {
    /// Rows of numbers from 0 to 255, as many lines each as the panel has steps.
    left: &'a [Line],
    /// How many rows there are, at least one.
    rows: usize,
    /// Numbers from -127 to 127 in 32 columns: `PANEL_STEP` lines for each step, at least one.
    panel: &'a [Line],
    /// For each row of a tile its 32 sums. Those of rows that are not there hold anything.
    sums: &'a mut [f32],
}
