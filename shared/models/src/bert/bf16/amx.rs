//! Products of bf16 by AMX: each instruction adds 256 sums of 32 products. The compiler has no intrinsics for it yet.
#![allow(unsafe_code)]

use std::arch::asm;
use std::time::Instant;

use super::avx512::Avx512;
use super::lines::{BLOCK, STEP};
use super::{PANEL_STEP, Product, TILE_COLUMNS};
use crate::bert::lines::Line;
use crate::bert::tiles::{Granted, Numbers, Shaped};

/// Bytes from one row of a tile to the next, in memory that holds nothing else.
const ROW: usize = size_of::<Line>();

/// A processor with AMX for bf16 that this process may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amx {
    granted: Granted,
    vectors: Avx512,
}

impl Amx {
    /// None where there is none, or the operating system does not grant it.
    pub(super) fn detect() -> Option<Self> {
        let (granted, vectors) = (Granted::with(Numbers::Bf16)?, Avx512::detect()?);
        Some(Self { granted, vectors })
    }

    pub(super) fn vectors(self) -> Avx512 {
        self.vectors
    }

    /// Shapes the tiles of this thread until what is returned goes.
    pub(super) fn configure(self) -> Tiles {
        Tiles(self.granted.configure())
    }
}

const _: () = assert!(ROW == 64 && BLOCK == 16 && PANEL_STEP == 32);

/// The tiles of this thread, shaped. They stay on it.
pub(super) struct Tiles(#[allow(dead_code, reason = "while it is there, the tiles are shaped")] Shaped);

impl Tiles {
    /// sums = left * panels.
    pub fn multiply(&self, product: Product<'_>) {
        let Product { left, rows, steps, panels, sums } = product;
        let panels = panels.chunks_exact(steps * PANEL_STEP);
        let columns = panels.len() * TILE_COLUMNS;
        let (upper, lower) = left.split_at_checked(steps * BLOCK).unwrap_or((left, &[]));
        let (upper_sums, lower_sums) = sums.split_at_mut_checked(BLOCK * columns).unwrap_or((&mut [], &mut []));
        let two = rows > BLOCK;
        assert!(upper.len() >= steps * BLOCK && upper_sums.len() >= BLOCK * columns, "one block");
        assert!(!two || lower.len() >= steps * BLOCK && lower_sums.len() >= BLOCK * columns, "two blocks");
        for (panel, from) in panels.zip((0..).step_by(TILE_COLUMNS)) {
            let (upper_sums, stride) = (upper_sums.as_mut_ptr().wrapping_add(from), columns * size_of::<f32>());
            // SAFETY: the processor has AMX, and this thread's tiles are shaped as long as `self` lives. A step reads 16
            // lines of a block and 32 of the panel, which has so many steps; each block has so many steps of 16 lines, as
            // checked above. What is written are 32 numbers at `from`, which is 32 less than `columns` at most, of each
            // of the 16 rows of `columns` numbers that each block's sums have, as checked above too. Nothing that
            // uses tiles is expected to keep what it holds from one block of instructions to the next.
            unsafe {
                if two {
                    let lower_sums = lower_sums.as_mut_ptr().wrapping_add(from);
                    two_blocks(
                        [upper.as_ptr(), lower.as_ptr()],
                        panel.as_ptr(),
                        steps,
                        [upper_sums, lower_sums],
                        stride,
                    );
                } else {
                    one_block(upper.as_ptr(), panel.as_ptr(), steps, upper_sums, stride);
                }
            }
        }
    }

    /// Floating-point operations a second that one thread reaches at best.
    pub fn peak_flops(&self) -> f64 {
        const ROUNDS: u32 = 100_000;
        const OPERATIONS: f64 = (4 * BLOCK * BLOCK * STEP * 2) as f64;
        let started = Instant::now();
        // SAFETY: as above; no memory is touched.
        unsafe {
            asm!(
                "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {rounds:e}",
                "jnz 2b",
                rounds = inout(reg) ROUNDS => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nomem, nostack)
            );
        }
        OPERATIONS * f64::from(ROUNDS) / started.elapsed().as_secs_f64()
    }
}

/// Two blocks times a panel: four tiles of sums, so that each tile that is loaded is used twice.
#[inline]
unsafe fn two_blocks(left: [*const Line; 2], panel: *const Line, steps: usize, sums: [*mut f32; 2], stride: usize) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{upper} + {row}]",
            "tileloadd tmm6, [{panel} + {row}]",
            "tileloadd tmm7, [{panel} + {row} + 1024]",
            "tileloadd tmm5, [{lower} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {upper}, 1024",
            "add {lower}, 1024",
            "add {panel}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{upper_sums} + {stride}], tmm0",
            "tilestored [{upper_sums} + {stride} + 64], tmm1",
            "tilestored [{lower_sums} + {stride}], tmm2",
            "tilestored [{lower_sums} + {stride} + 64], tmm3",
            upper = inout(reg) left[0] => _,
            lower = inout(reg) left[1] => _,
            panel = inout(reg) panel => _,
            steps = inout(reg) steps => _,
            row = in(reg) ROW,
            upper_sums = in(reg) sums[0],
            lower_sums = in(reg) sums[1],
            stride = in(reg) stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
}

/// One block times a panel.
#[inline]
unsafe fn one_block(left: *const Line, panel: *const Line, steps: usize, sums: *mut f32, stride: usize) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{left} + {row}]",
            "tileloadd tmm6, [{panel} + {row}]",
            "tileloadd tmm7, [{panel} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {left}, 1024",
            "add {panel}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {stride}], tmm0",
            "tilestored [{sums} + {stride} + 64], tmm1",
            left = inout(reg) left => _,
            panel = inout(reg) panel => _,
            steps = inout(reg) steps => _,
            row = in(reg) ROW,
            sums = in(reg) sums,
            stride = in(reg) stride,
            out("tmm0") _, out("tmm1") _,
            out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
}
