//! The registers of AMX: tiles of a kilobyte, which the operating system grants to a process that asks and a thread shapes
//! before it uses them.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

thread_local! {
    /// How many users the tiles of this thread have.
    static USERS: Cell<usize> = const { Cell::new(0) };
}

/// Of what products are added up.
#[derive(Debug, Clone, Copy)]
pub(super) enum Numbers {
    Bf16,
    Int8,
}

/// A processor with tiles that this process may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Granted(());

impl Granted {
    /// None where there are none, where they do not multiply these numbers, or where the operating system does not grant
    /// them.
    pub fn with(numbers: Numbers) -> Option<Self> {
        static GRANTED: OnceLock<bool> = OnceLock::new();
        // Miri knows neither the question to the processor nor its tiles.
        let there = !cfg!(miri) && has(numbers) && *GRANTED.get_or_init(ask_for_tiles);
        there.then_some(Self(()))
    }

    /// Shapes the tiles of this thread until what is returned goes.
    pub fn configure(self) -> Shaped {
        let users = USERS.get();
        if users == 0 {
            let shapes = Shapes::FULL;
            // SAFETY: the processor has AMX and the process may use it, or this would not have been granted; the shapes are
            // 64 bytes of a valid palette. No tile is in use.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) };
        }
        USERS.set(users + 1);
        Shaped(PhantomData)
    }
}

/// The processor has it, and the operating system saves its registers.
fn has(numbers: Numbers) -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const TILES: u32 = 1 << 24;
    /// Configuration and data of tiles.
    const SAVED: u32 = 1 << 17 | 1 << 18;
    let wanted = TILES
        | match numbers {
            Numbers::Bf16 => 1 << 22,
            Numbers::Int8 => 1 << 25,
        };
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let saved: u32;
    // SAFETY: with OSXSAVE there is xgetbv, and a register 0.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") saved, out("edx") _, options(nomem, nostack)) };
    __cpuid_count(7, 0).edx & wanted == wanted && saved & SAVED == SAVED
}

/// Asks Linux for the data of tiles, for all threads of the process.
fn ask_for_tiles() -> bool {
    const ARCH_PRCTL: usize = 158;
    const REQUEST_PERMISSION: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let answer: isize;
    // SAFETY: this call changes nothing but what it is asked for, and nothing at all where it is not known. The kernel
    // overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => answer,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    answer == 0
}

/// How many rows and bytes a row each tile has.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// All eight tiles of sixteen rows and a line in each row.
    const FULL: Self = {
        let (bytes, rows) = (64, 16);
        Self {
            palette: 1,
            start: 0,
            reserved: [0; 14],
            row_bytes: [bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes, 0, 0, 0, 0, 0, 0, 0, 0],
            rows: [rows, rows, rows, rows, rows, rows, rows, rows, 0, 0, 0, 0, 0, 0, 0, 0],
        }
    };
}

const _: () = assert!(size_of::<Shapes>() == 64);

/// The tiles of this thread, shaped. They stay on it.
pub(super) struct Shaped(PhantomData<*mut ()>);

impl Drop for Shaped {
    fn drop(&mut self) {
        let users = USERS.get() - 1;
        USERS.set(users);
        if users == 0 {
            // SAFETY: there is AMX, or nothing could have been shaped; nobody uses the tiles any more. Without them
            // the thread is as cheap to switch as before.
            unsafe { asm!("tilerelease", options(nomem, nostack)) };
        }
    }
}
