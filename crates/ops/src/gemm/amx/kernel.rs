//! A block of `out` in tile registers: tmm0 to tmm3 are its quarters, tmm4 and tmm5 hold `a`, tmm6 and tmm7 `b`.

use super::{BLOCK, Parts};
use std::arch::asm;

/// At most 32 x 32 elements of `out`.
pub(super) struct Tile {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Packed blocks along k.
    pub(super) steps: usize,
    pub(super) a: *const u32,
    pub(super) b: *const u32,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    pub(super) add: bool,
    /// The block that comes next: its lines are asked for meanwhile.
    pub(super) next_out: *mut f32,
}

#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Gives all eight tiles 16 rows of 64 bytes on this thread.
///
/// # Safety
/// AMX must be usable.
pub(super) unsafe fn configure() {
    let mut config =
        Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    config.row_bytes[..8].fill(64);
    config.rows[..8].fill(16);
    // SAFETY: the configuration is 64 valid bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) };
}

/// Returns the tile registers to their initial state.
///
/// # Safety
/// AMX must be usable.
pub(super) unsafe fn release() {
    // SAFETY: as for this function.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// Loads a part of `b` of the step, at `$at`.
macro_rules! b {
    ($at:literal) => {
        concat!("tileloadd tmm6, [{b} + {s} + ", $at, "]\ntileloadd tmm7, [{b} + {s} + ", $at, " + 1024]")
    };
}

/// Adds the upper row of quarters of a part of `a`, at `$at`, by what is loaded of `b`; or of the part loaded last.
macro_rules! one {
    () => {
        "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7"
    };
    ($at:literal) => {
        concat!("tileloadd tmm4, [{a} + {s} + ", $at, "]\n", one!())
    };
}

/// Adds both rows of quarters.
macro_rules! two {
    () => {
        concat!(one!(), "\ntdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7")
    };
    ($at:literal) => {
        concat!(
            "tileloadd tmm4, [{a} + {s} + ",
            $at,
            "]\ntileloadd tmm5, [{a} + {s} + ",
            $at,
            " + 1024]\n",
            two!()
        )
    };
}

/// Runs the k loop `$body` over blocks of `$a_bytes` and `$b_bytes`, with both rows of quarters or the upper one.
macro_rules! product {
    ($tile:expr, two, $a_bytes:literal, $b_bytes:literal, $($body:expr),+) => {
        product!(@ $tile, $a_bytes, $b_bytes,
            ["tileloadd tmm2, [{c1} + {cs}]", "tileloadd tmm3, [{c1} + {cs} + 64]"],
            ["tilezero tmm2", "tilezero tmm3"],
            ["tilestored [{c1} + {cs}], tmm2", "tilestored [{c1} + {cs} + 64], tmm3"],
            [$($body),+])
    };
    ($tile:expr, one, $a_bytes:literal, $b_bytes:literal, $($body:expr),+) => {
        product!(@ $tile, $a_bytes, $b_bytes, ["/* {c1} */"], [""], [""], [$($body),+])
    };
    (@ $tile:expr, $a_bytes:literal, $b_bytes:literal, [$($load:literal),+], [$($zero:literal),+], [$($store:literal),+],
     [$($body:expr),+]) => {
        asm!(
            "test {add:e}, {add:e}",
            "jz 2f",
            "tileloadd tmm0, [{c0} + {cs}]",
            "tileloadd tmm1, [{c0} + {cs} + 64]",
            $($load,)+
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            $($zero,)+
            "3:",
            "prefetchw [{next}]",
            "prefetchw [{next} + 64]",
            "prefetchw [{next} + {cs}]",
            "prefetchw [{next} + {cs} + 64]",
            "lea {next}, [{next} + 2 * {cs}]",
            "prefetchw [{next}]",
            "prefetchw [{next} + 64]",
            "prefetchw [{next} + {cs}]",
            "prefetchw [{next} + {cs} + 64]",
            "lea {next}, [{next} + 2 * {cs}]",
            $($body,)+
            concat!("add {a}, ", $a_bytes),
            concat!("add {b}, ", $b_bytes),
            "dec {steps}",
            "jnz 3b",
            "tilestored [{c0} + {cs}], tmm0",
            "tilestored [{c0} + {cs} + 64], tmm1",
            $($store,)+
            add = in(reg) u32::from($tile.add),
            a = inout(reg) $tile.a => _,
            b = inout(reg) $tile.b => _,
            steps = inout(reg) $tile.steps => _,
            next = inout(reg) $tile.next_out => _,
            s = in(reg) 64usize,
            c0 = in(reg) $tile.out,
            c1 = in(reg) $tile.out.wrapping_add(16 * $tile.out_stride),
            cs = in(reg) 4 * $tile.out_stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

impl Tile {
    /// Computes the block.
    ///
    /// # Safety
    /// The tiles must be configured, the pointers good for the shape, `steps` not 0.
    pub(super) unsafe fn run(self, parts: Parts, b_parts: Parts) {
        let tall = if self.rows > BLOCK / 2 { BLOCK } else { BLOCK / 2 };
        if self.rows == tall && self.cols == BLOCK {
            // SAFETY: as for this function.
            return unsafe { self.whole(parts, b_parts) };
        }
        // The sums so far come along, so that an element is summed in the same order wherever it lies.
        let mut aside = [0f32; BLOCK * BLOCK];
        let rows = aside.chunks_exact_mut(BLOCK).take(self.rows).enumerate();
        for (r, row) in rows.filter(|_| self.add) {
            // SAFETY: the block has this row, `cols` long.
            let from = unsafe { std::slice::from_raw_parts(self.out.add(r * self.out_stride), self.cols) };
            row[..self.cols].copy_from_slice(from);
        }
        let tile = Self { out: aside.as_mut_ptr(), out_stride: BLOCK, ..self };
        // SAFETY: as for this function, and `aside` holds a whole block.
        unsafe { tile.whole(parts, b_parts) };
        for (r, from) in aside.chunks_exact(BLOCK).take(self.rows).enumerate() {
            // SAFETY: the block has this row, `cols` long.
            let to = unsafe { std::slice::from_raw_parts_mut(self.out.add(r * self.out_stride), self.cols) };
            to.copy_from_slice(&from[..self.cols]);
        }
    }

    /// # Safety
    /// As for `run`; 32 columns and 32 rows, or 16 where there are at most 16, are written.
    unsafe fn whole(&self, parts: Parts, b_parts: Parts) {
        let two = self.rows > BLOCK / 2;
        // The small products come first: the sums are still small then.
        // SAFETY: as for this function; blocks of packed operands are 2 KiB a part.
        unsafe {
            match (parts, b_parts, two) {
                (Parts::Three, _, true) => {
                    product!(self, two, 6144, 2048, b!(0), two!(4096), two!(2048), two!(0))
                }
                (Parts::Three, _, false) => {
                    product!(self, one, 6144, 2048, b!(0), one!(4096), one!(2048), one!(0))
                }
                (Parts::Two, Parts::Two, true) => {
                    product!(self, two, 4096, 4096, b!(0), two!(2048), two!(0), b!(2048), two!())
                }
                (Parts::Two, Parts::Two, false) => {
                    product!(self, one, 4096, 4096, b!(0), one!(2048), one!(0), b!(2048), one!())
                }
                (Parts::Two, _, true) => product!(self, two, 4096, 2048, b!(0), two!(2048), two!(0)),
                (Parts::Two, _, false) => product!(self, one, 4096, 2048, b!(0), one!(2048), one!(0)),
                (Parts::One, _, true) => product!(self, two, 2048, 2048, b!(0), two!(0)),
                (Parts::One, _, false) => product!(self, one, 2048, 2048, b!(0), one!(0)),
            }
        }
    }
}
