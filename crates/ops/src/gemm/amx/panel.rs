//! Packed rows of `a` by a panel, which is 32 rows of a bf16 weight made tiles near the core.

use super::{KT, Parts};
use crate::gemm::{
    view::View,
    x86::{lanes, transpose},
};
use half::bf16;
use std::arch::{asm, x86_64::*};

/// Rows of `a`, and columns of sums, of a block.
pub(super) const BLOCK: usize = super::BLOCK;
/// Words of a step of a panel, and of a step of a block of `a` for each part: two tiles.
pub(super) const WORDS: usize = 512;
/// Words of one tile.
const TILE: usize = WORDS / 2;

/// Two times 16 rows of weights, from some step of k on.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    pub(super) halves: [View<'a, bf16>; 2],
}

impl Panel<'_> {
    /// Writes the panel: per step of k two tiles, zeros beyond its rows and columns.
    ///
    /// # Safety
    /// `to` must hold the steps and AVX-512 must be usable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn pack(&self, to: *mut u32) {
        for (half, rows) in self.halves.iter().enumerate() {
            let (whole, rest) = (rows.cols / KT, rows.cols % KT);
            for step in 0..rows.cols.div_ceil(KT) {
                let from = rows.ptr.wrapping_add(step * KT);
                let at = |r: usize| from.wrapping_add(r * rows.row_stride).cast::<i8>();
                // SAFETY: masks and rows admit what exists; the tile lies within `to`.
                unsafe {
                    let tile = if step < whole && rows.rows == 16 {
                        std::array::from_fn(|r| _mm512_loadu_si512(at(r).cast()))
                    } else {
                        let mask = if step < whole { !0 } else { (1u32 << rest) - 1 };
                        std::array::from_fn(|r| match r < rows.rows {
                            true => _mm512_maskz_loadu_epi16(mask, at(r).cast()),
                            false => _mm512_setzero_si512(),
                        })
                    };
                    let to = to.add(step * WORDS + half * TILE);
                    for (r, line) in transpose(tile).into_iter().enumerate() {
                        _mm512_store_si512(to.add(16 * r).cast(), line);
                    }
                }
            }
        }
    }

    /// Asks for what [`Panel::pack`] will read, share `index` of `count`.
    pub(super) fn prefetch(&self, index: usize, count: usize) {
        for rows in &self.halves {
            for row in rows.rows * index / count..rows.rows * (index + 1) / count {
                for column in (0..rows.cols).step_by(32) {
                    let place = rows.ptr.wrapping_add(row * rows.row_stride + column);
                    // SAFETY: nothing is accessed.
                    unsafe { _mm_prefetch::<_MM_HINT_T1>(place.cast()) };
                }
            }
        }
    }
}

/// A block of `a` by a packed panel.
pub(super) struct Walk {
    pub(super) a: *const u32,
    pub(super) panel: *const u32,
    /// Steps of k, at least one.
    pub(super) steps: usize,
    /// 32 columns of 32 rows, or of 16 where `two` is not set.
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    pub(super) add: bool,
    pub(super) two: bool,
    /// What is written next: some of its rows, two lines each, are asked for; and from one row to the next.
    pub(super) next_out: *mut f32,
    pub(super) next_stride: usize,
}

/// Runs the k loop `$body` over blocks of `$bytes`; tmm0 to tmm3 are the sums' quarters, of which `one` knows the upper two.
macro_rules! walk {
    ($walk:expr, two, $bytes:literal, $($body:expr),+) => {
        walk!(@ $walk, $bytes,
            ["tileloadd tmm2, [{c1} + {cs}]", "tileloadd tmm3, [{c1} + {cs} + 64]"],
            ["tilezero tmm2", "tilezero tmm3"],
            ["tilestored [{c1} + {cs}], tmm2", "tilestored [{c1} + {cs} + 64], tmm3"],
            [$($body),+])
    };
    ($walk:expr, one, $bytes:literal, $($body:expr),+) => {
        walk!(@ $walk, $bytes, ["/* {c1} */"], [""], [""], [$($body),+])
    };
    (@ $walk:expr, $bytes:literal, [$($load:literal),+], [$($zero:literal),+], [$($store:literal),+], [$($body:expr),+]) => {
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
            "prefetchw [{next} + {ns}]",
            "prefetchw [{next} + {ns} + 64]",
            "lea {next}, [{next} + 2 * {ns}]",
            $($body,)+
            concat!("add {a}, ", $bytes),
            "add {b}, 2048",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{c0} + {cs}], tmm0",
            "tilestored [{c0} + {cs} + 64], tmm1",
            $($store,)+
            add = in(reg) u32::from($walk.add),
            a = inout(reg) $walk.a => _,
            b = inout(reg) $walk.panel => _,
            steps = inout(reg) $walk.steps => _,
            next = inout(reg) $walk.next_out => _,
            ns = in(reg) 4 * $walk.next_stride,
            s = in(reg) 64usize,
            c0 = in(reg) $walk.out,
            c1 = in(reg) $walk.out.wrapping_add(16 * $walk.out_stride),
            cs = in(reg) 4 * $walk.out_stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// The products of the part of `a` at `$at`: `first` loads the panel's step, which `next` finds loaded. `a` passes by and is
/// read with the hint that says so: reading both alike takes 1.4 times as long.
macro_rules! part {
    (first two $at:literal) => {
        concat!(
            "tileloaddt1 tmm4, [{a} + {s} + ",
            $at,
            "]\ntileloadd tmm6, [{b} + {s}]\ntdpbf16ps tmm0, tmm4, tmm6\ntileloaddt1 tmm5, [{a} + {s} + ",
            $at,
            " + 1024]\ntdpbf16ps tmm2, tmm5, tmm6\ntileloadd tmm7, [{b} + {s} + 1024]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\ntdpbf16ps tmm3, tmm5, tmm7"
        )
    };
    (next two $at:literal) => {
        concat!(
            "tileloaddt1 tmm4, [{a} + {s} + ",
            $at,
            "]\ntdpbf16ps tmm0, tmm4, tmm6\ntileloaddt1 tmm5, [{a} + {s} + ",
            $at,
            " + 1024]\ntdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm1, tmm4, tmm7\ntdpbf16ps tmm3, tmm5, tmm7"
        )
    };
    (first one $at:literal) => {
        concat!(
            "tileloaddt1 tmm4, [{a} + {s} + ",
            $at,
            "]\ntileloadd tmm6, [{b} + {s}]\ntdpbf16ps tmm0, tmm4, tmm6\n",
            "tileloadd tmm7, [{b} + {s} + 1024]\ntdpbf16ps tmm1, tmm4, tmm7"
        )
    };
    (next one $at:literal) => {
        concat!(
            "tileloaddt1 tmm4, [{a} + {s} + ",
            $at,
            "]\ntdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7"
        )
    };
}

impl Walk {
    /// Adds the products to the sums, or to nothing.
    ///
    /// # Safety
    /// The tiles must be configured, the operands packed and the sums there.
    pub(super) unsafe fn run(&self, parts: Parts) {
        // The small products come first: the sums are still small then.
        // SAFETY: as for this function.
        unsafe {
            match (parts, self.two) {
                (Parts::One, true) => walk!(self, two, 2048, part!(first two 0)),
                (Parts::Two, true) => walk!(self, two, 4096, part!(first two 2048), part!(next two 0)),
                (Parts::Three, true) => {
                    walk!(self, two, 6144, part!(first two 4096), part!(next two 2048), part!(next two 0))
                }
                (Parts::One, false) => walk!(self, one, 2048, part!(first one 0)),
                (Parts::Two, false) => walk!(self, one, 4096, part!(first one 2048), part!(next one 0)),
                (Parts::Three, false) => {
                    walk!(self, one, 6144, part!(first one 4096), part!(next one 2048), part!(next one 0))
                }
            }
        }
    }

    /// As [`Walk::run`] for sums of which only `rows` x `cols` are there.
    ///
    /// # Safety
    /// As for `run`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn run_within(mut self, parts: Parts, rows: usize, cols: usize) {
        #[repr(align(64))]
        struct Aside([f32; BLOCK * BLOCK]);
        self.two = rows > BLOCK / 2;
        let whole = if self.two { BLOCK } else { BLOCK / 2 };
        // SAFETY: as for this function; masks and rows admit what is there.
        unsafe {
            if (rows, cols) == (whole, BLOCK) {
                return self.run(parts);
            }
            // The sums so far come along, so that an element is summed in the same order wherever it lies.
            let mut aside = Aside([0.0; BLOCK * BLOCK]);
            let masks = [lanes(cols), lanes(cols.saturating_sub(16))];
            let (out, stride) = (self.out, self.out_stride);
            let place = |r: usize, half: usize| out.wrapping_add(r * stride + 16 * half);
            let near = |r: usize, half: usize| r * BLOCK + 16 * half;
            for (r, half) in (0..rows).flat_map(|r| [(r, 0), (r, 1)]).filter(|_| self.add) {
                let values = _mm512_maskz_loadu_ps(masks[half], place(r, half));
                _mm512_store_ps(aside.0.as_mut_ptr().add(near(r, half)), values);
            }
            (self.out, self.out_stride) = (aside.0.as_mut_ptr(), BLOCK);
            self.run(parts);
            for (r, half) in (0..rows).flat_map(|r| [(r, 0), (r, 1)]) {
                let values = _mm512_load_ps(aside.0.as_ptr().add(near(r, half)));
                _mm512_mask_storeu_ps(place(r, half), masks[half], values);
            }
        }
    }
}
