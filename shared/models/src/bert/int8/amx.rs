//! Products of whole numbers by AMX: each instruction adds 256 sums of 64 products. The compiler has no intrinsics for it yet.
#![allow(unsafe_code)]

use std::arch::asm;
use std::time::Instant;

use super::avx512::Avx512;
use super::{BLOCK, PANEL_STEP, Product, STEP, TILE_COLUMNS, TILE_ROWS};
use crate::bert::lines::Line;
use crate::bert::tiles::{Granted, Numbers, Shaped};

/// Bytes from one row of a tile to the next, in memory that holds nothing else.
const ROW: usize = size_of::<Line>();
/// The same in the sums.
const SUMS_ROW: usize = TILE_COLUMNS * size_of::<f32>();

/// A processor with AMX for whole numbers that this process may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amx {
    granted: Granted,
    vectors: Avx512,
}

impl Amx {
    /// None where there is none, or the operating system does not grant it.
    pub(super) fn detect() -> Option<Self> {
        let (granted, vectors) = (Granted::with(Numbers::Int8)?, Avx512::detect()?);
        Some(Self { granted, vectors })
    }

    pub(super) fn vectors(self) -> Avx512 {
        self.vectors
    }

    /// Shapes the tiles of this thread until what is returned goes.
    pub(super) fn configure(self) -> Tiles {
        Tiles { vectors: self.vectors, _shaped: self.granted.configure() }
    }
}

const _: () = assert!(ROW == 64 && BLOCK == 16 && PANEL_STEP == 32 && TILE_ROWS == 2 * BLOCK && TILE_COLUMNS == 32);

/// The tiles of this thread, shaped. They stay on it.
pub(super) struct Tiles {
    vectors: Avx512,
    _shaped: Shaped,
}

impl Tiles {
    /// sums = left * panel.
    pub fn multiply(&self, product: Product<'_>) {
        let Product { left, rows, panel, sums } = product;
        let steps = panel.len() / PANEL_STEP;
        let blocks = rows.div_ceil(BLOCK);
        assert!(steps > 0 && blocks <= 2 && left.len() >= blocks * BLOCK * steps, "rows of {steps} lines");
        assert!(sums.len() >= TILE_ROWS * TILE_COLUMNS, "two blocks of sums");
        let (stride, from, panel, to) = (steps * ROW, left.as_ptr(), panel.as_ptr(), sums.as_mut_ptr());
        // SAFETY: the processor has AMX, and this thread's tiles are shaped as long as `self` lives. A step reads a line of
        // each of the 16 rows of a block, which have so many lines each, and 32 lines of the panel, which has so many
        // steps. What is written are 16 rows of 32 numbers for each block: they are whole numbers of 32 bits, which any
        // number in single precision has the place for. All as checked above. Nothing that uses tiles is expected to keep
        // what it holds from one block of instructions to the next.
        unsafe {
            if blocks == 2 {
                let lower = from.wrapping_add(BLOCK * steps);
                two_blocks([from, lower], stride, panel, steps, to);
            } else {
                one_block(from, stride, panel, steps, to);
            }
        }
        self.vectors.convert(sums.get_mut(..blocks * BLOCK * TILE_COLUMNS).unwrap_or(&mut []));
    }

    /// Operations a second that one thread reaches at best.
    pub fn peak_operations(&self) -> f64 {
        const ROUNDS: u32 = 100_000;
        const OPERATIONS: f64 = (4 * BLOCK * BLOCK * STEP * 2) as f64;
        let started = Instant::now();
        // SAFETY: as above; no memory is touched.
        unsafe {
            asm!(
                "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                "tdpbusd tmm0, tmm4, tmm6",
                "tdpbusd tmm1, tmm4, tmm7",
                "tdpbusd tmm2, tmm5, tmm6",
                "tdpbusd tmm3, tmm5, tmm7",
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
unsafe fn two_blocks(left: [*const Line; 2], stride: usize, panel: *const Line, steps: usize, sums: *mut f32) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{upper} + {stride}]",
            "tileloadd tmm6, [{panel} + {row}]",
            "tileloadd tmm7, [{panel} + {row} + 1024]",
            "tileloadd tmm5, [{lower} + {stride}]",
            "tdpbusd tmm0, tmm4, tmm6",
            "tdpbusd tmm1, tmm4, tmm7",
            "tdpbusd tmm2, tmm5, tmm6",
            "tdpbusd tmm3, tmm5, tmm7",
            "add {upper}, 64",
            "add {lower}, 64",
            "add {panel}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {sums_row}], tmm0",
            "tilestored [{sums} + {sums_row} + 64], tmm1",
            "tilestored [{sums} + {sums_row} + 2048], tmm2",
            "tilestored [{sums} + {sums_row} + 2112], tmm3",
            upper = inout(reg) left[0] => _,
            lower = inout(reg) left[1] => _,
            stride = in(reg) stride,
            panel = inout(reg) panel => _,
            row = in(reg) ROW,
            steps = inout(reg) steps => _,
            sums = in(reg) sums,
            sums_row = in(reg) SUMS_ROW,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
}

/// One block times a panel.
#[inline]
unsafe fn one_block(left: *const Line, stride: usize, panel: *const Line, steps: usize, sums: *mut f32) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{left} + {stride}]",
            "tileloadd tmm6, [{panel} + {row}]",
            "tileloadd tmm7, [{panel} + {row} + 1024]",
            "tdpbusd tmm0, tmm4, tmm6",
            "tdpbusd tmm1, tmm4, tmm7",
            "add {left}, 64",
            "add {panel}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {sums_row}], tmm0",
            "tilestored [{sums} + {sums_row} + 64], tmm1",
            left = inout(reg) left => _,
            stride = in(reg) stride,
            panel = inout(reg) panel => _,
            row = in(reg) ROW,
            steps = inout(reg) steps => _,
            sums = in(reg) sums,
            sums_row = in(reg) SUMS_ROW,
            out("tmm0") _, out("tmm1") _,
            out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
}
