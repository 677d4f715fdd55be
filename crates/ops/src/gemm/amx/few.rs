//! A few rows by a bf16 weight on tiles: reading the weight once takes most of the time.
//!
//! The roles are swapped: rows of the weight, adjacent along k, are the rows of the left operand's tiles, so a block of
//! them is read as it lies in memory, line after line, into tiles near the core; the few rows of `a` are packed as the
//! right operand, and tiles of `out` come transposed. (Tiles can be loaded from where the weight lies, but 64 rows at a time
//! is an order in which memory is read at half its speed.) Every element is the same sum in the same order
//! as in [`super::run`], so a row does not depend, to the last bit, on how many others come with it.

use super::{BLOCK, KT, Parts, kernel, pack};
use crate::{
    gemm::{
        Element, FEW_ROWS, View, ViewMut,
        scratch::{self, Slot},
        split::Product,
        x86::{lanes, transpose},
    },
    parallel::brief,
    simd::prefetch,
};
use half::bf16;
use std::arch::{asm, x86_64::*};

/// Bytes of a tile.
const TILE: usize = 1024;
/// Rows of a tile.
const ROWS: usize = 16;
/// Tiles of sums: a weight's 64 rows by 16 of `a`, or 32 by 32.
const SUMS: usize = 4;
/// Steps of k of a block of the weight that are copied at a time.
const SPAN: usize = 64;
/// Weights from what is read to what is asked for: hardware stops at the end of a page, and mapped files have small ones.
const AHEAD: usize = 4096;
/// Weights of one task, at least.
const MIN_WORK: usize = 1 << 13;
/// Tasks for each thread, at most: so that one that is late leaves some to the others.
const TASKS: usize = 16;

/// Rows of `a` beyond which packing the weight is faster.
const MOST: usize = FEW_ROWS;
/// Rows of a weight at least.
pub(in crate::gemm) const FEATURES: usize = BLOCK;

/// Whether the operands are of this kind.
pub(in crate::gemm) fn takes<B: Element>(product: &Product<'_, B>) -> bool {
    let Product { a, b, .. } = product;
    B::IS_BF16 && a.rows <= MOST && a.col_stride == 1 && b.row_stride == 1 && b.cols >= FEATURES
}

/// `out (+)= alpha a b` of operands that [`takes`] has seen.
pub(in crate::gemm) fn run<B: Element>(product: Product<'_, B>, parts: Parts) {
    let Product { out, accumulate, alpha, a, b } = product;
    debug_assert!(B::IS_BF16, "a weight of f32");
    // SAFETY: the elements are bf16, and the view's.
    let weight = unsafe { View::new(b.ptr.cast::<bf16>(), b.cols, b.rows, b.col_stride, 1) };
    let halves = if a.rows <= ROWS && weight.rows >= SUMS * ROWS { 1 } else { 2 };
    let groups = a.rows.div_ceil(ROWS * halves);
    let steps = a.cols.div_ceil(KT);
    let tiles = groups * steps * parts.count() * halves;
    let blocks = weight.rows.div_ceil(SUMS / halves * ROWS);
    let tasks = (b.cols * a.cols / MIN_WORK).min(rayon::current_num_threads() * TASKS).clamp(1, blocks);
    scratch::with(tiles * TILE / 4, |packed| {
        // SAFETY: AMX and AVX-512 are usable where this is called; the buffer holds the tiles.
        unsafe { pack::pack(a, alpha, parts, true, halves, packed) };
        let few = Few { out: &out, accumulate, weight, packed, steps, halves, groups, rows: a.rows, parts };
        brief(tasks, |task| {
            // SAFETY: as above; tasks have blocks of their own.
            unsafe {
                scratch::with_slot(Slot::Task, SUMS / halves * TILE / 4 * steps.min(SPAN), |rows| {
                    kernel::configure();
                    (blocks * task / tasks..blocks * (task + 1) / tasks)
                        .for_each(|block| few.block(block, rows));
                    kernel::release();
                });
            }
        });
    });
}

struct Few<'a> {
    out: &'a ViewMut<'a>,
    accumulate: bool,
    /// [n, k], rows adjacent along k.
    weight: View<'a, bf16>,
    packed: *const u32,
    /// Steps of k, the last one perhaps not whole.
    steps: usize,
    /// Tiles of rows of `a` in a group.
    halves: usize,
    groups: usize,
    /// Rows of `a`.
    rows: usize,
    parts: Parts,
}

// SAFETY: what is packed is only read; tasks write disjoint columns of `out`.
unsafe impl Sync for Few<'_> {}

/// Four tiles of sums.
#[repr(align(64))]
struct Sums([f32; TILE]);

impl Few<'_> {
    /// Block `block` of columns of `out`, with `tiles` for rows of the weight. The last one reaches back to be whole.
    ///
    /// # Safety
    /// The tiles must be configured, and nobody else be at work on these columns.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn block(&self, block: usize, tiles: *mut u32) {
        let Self { weight, steps, halves, parts, .. } = *self;
        let width = SUMS / halves * ROWS;
        let first = (block * width).min(weight.rows - width);
        let skip = block * width - first;
        let step_words = parts.count() * halves * TILE / 4;
        let mut sums = [const { Sums([0.0; TILE]) }; MOST / ROWS];
        let sums = &mut sums[..self.groups];
        // SAFETY: rows and columns lie within the operands; what is packed is there.
        unsafe {
            if self.accumulate {
                for (group, sums) in sums.iter_mut().enumerate() {
                    self.read(group, first, skip, sums);
                }
            }
            for step in (0..steps).step_by(SPAN) {
                let end = (step + SPAN).min(steps);
                let k = step * KT..(end * KT).min(weight.cols);
                copy(weight.part(first, k.start, width, k.len()), tiles);
                for (group, sums) in sums.iter_mut().enumerate() {
                    let packed = self.packed.wrapping_add((group * steps + step) * step_words);
                    Walk { weight: tiles, packed, steps: end - step }.run(parts, halves, sums);
                }
            }
            for (group, sums) in sums.iter_mut().enumerate() {
                self.write(group, first, skip, sums);
            }
        }
    }

    /// Calls `work` for every tile of sums that has a place in `out`: the place of its first row, its rows, which of its
    /// columns are this block's, and the tile.
    #[inline(always)]
    fn tiles(
        &self,
        group: usize,
        first: usize,
        skip: usize,
        sums: &mut Sums,
        work: impl Fn(*mut f32, usize, __mmask16, &mut [f32]),
    ) {
        for (number, tile) in sums.0.chunks_exact_mut(TILE / 4).enumerate() {
            let (column, half) = (number / self.halves * ROWS, number % self.halves);
            let row = (group * self.halves + half) * ROWS;
            if row < self.rows && skip < column + ROWS {
                let to = self.out.ptr.wrapping_add(row * self.out.row_stride + first + column);
                work(to, (self.rows - row).min(ROWS), !lanes(skip.saturating_sub(column)), tile);
            }
        }
    }

    /// Reads a block of sums from column `first` of `out` on, leaving out the first `skip`.
    ///
    /// # Safety
    /// As for `block`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn read(&self, group: usize, first: usize, skip: usize, sums: &mut Sums) {
        let stride = self.out.row_stride;
        // SAFETY: rows and columns lie within `out`; a tile is 16 rows of 16 floats.
        self.tiles(group, first, skip, sums, |from, count, mask, tile| unsafe {
            let row = |r: usize| {
                if r < count {
                    _mm512_maskz_loadu_epi32(mask, from.add(r * stride).cast())
                } else {
                    _mm512_setzero_si512()
                }
            };
            for (r, values) in transpose(std::array::from_fn(row)).into_iter().enumerate() {
                _mm512_store_si512(tile.as_mut_ptr().add(ROWS * r).cast(), values);
            }
        });
    }

    /// Writes a block of sums, as [`Few::read`] reads it.
    ///
    /// # Safety
    /// As for `block`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn write(&self, group: usize, first: usize, skip: usize, sums: &mut Sums) {
        let stride = self.out.row_stride;
        // SAFETY: as for `read`.
        self.tiles(group, first, skip, sums, |to, count, mask, tile| unsafe {
            let rows = std::array::from_fn(|r| _mm512_load_si512(tile.as_ptr().add(ROWS * r).cast()));
            for (r, values) in transpose(rows).into_iter().take(count).enumerate() {
                _mm512_mask_storeu_epi32(to.add(r * stride).cast(), mask, values);
            }
        });
    }
}

/// Copies rows of a weight into tiles of 16 rows, those of one step of k after those of the other; zeros beyond its end.
///
/// # Safety
/// `to` must hold the tiles and AVX-512 must be usable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn copy(from: View<'_, bf16>, to: *mut u32) {
    let (tiles, whole, rest) = (from.rows / ROWS, from.cols / KT, from.cols % KT);
    let mask = (1u32 << rest) - 1;
    for row in 0..from.rows {
        let line = from.ptr.wrapping_add(row * from.row_stride);
        let to = to.wrapping_add((row / ROWS * ROWS + row % ROWS) * KT / 2);
        // SAFETY: the row is there, and its place in every tile.
        unsafe {
            for step in 0..whole {
                let from = line.add(step * KT);
                prefetch(from.wrapping_add(AHEAD));
                let values = _mm512_loadu_si512(from.cast());
                _mm512_store_si512(to.add(step * tiles * TILE / 4).cast(), values);
            }
            if rest > 0 {
                let values = _mm512_maskz_loadu_epi16(mask, line.add(whole * KT).cast());
                _mm512_store_si512(to.add(whole * tiles * TILE / 4).cast(), values);
            }
        }
    }
}

/// A block of rows of a weight, as tiles, by packed tiles.
struct Walk {
    weight: *const u32,
    packed: *const u32,
    steps: usize,
}

/// The walk of a block of rows of the weight whose tiles take `$row_bytes` a step, and those of `a` `$bytes`. tmm0 to tmm3
/// are the sums.
macro_rules! walk {
    ($walk:expr, $sums:expr, $row_bytes:literal, $bytes:literal, [$($body:expr),+]) => {
        asm!(
            "tileloadd tmm0, [{sums} + {s}]",
            "tileloadd tmm1, [{sums} + {s} + 1024]",
            "tileloadd tmm2, [{sums} + {s} + 2048]",
            "tileloadd tmm3, [{sums} + {s} + 3072]",
            "2:",
            $($body,)+
            concat!("add {w}, ", $row_bytes),
            concat!("add {b}, ", $bytes),
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {s}], tmm0",
            "tilestored [{sums} + {s} + 1024], tmm1",
            "tilestored [{sums} + {s} + 2048], tmm2",
            "tilestored [{sums} + {s} + 3072], tmm3",
            w = inout(reg) $walk.weight => _,
            b = inout(reg) $walk.packed => _,
            steps = inout(reg) $walk.steps => _,
            s = in(reg) 64usize,
            sums = in(reg) $sums.0.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// The products of one part: the arguments are where its one or two tiles of `a` lie within a step. What a sum is added
/// to next comes four products later.
macro_rules! part {
    ($at:literal) => {
        concat!(
            "tileloadd tmm6, [{b} + {s} + ",
            $at,
            "]\n",
            "tileloadd tmm4, [{w} + {s} + 0]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tileloadd tmm5, [{w} + {s} + 1024]\n",
            "tdpbf16ps tmm1, tmm5, tmm6\n",
            "tileloadd tmm4, [{w} + {s} + 2048]\n",
            "tdpbf16ps tmm2, tmm4, tmm6\n",
            "tileloadd tmm5, [{w} + {s} + 3072]\n",
            "tdpbf16ps tmm3, tmm5, tmm6"
        )
    };
    ($at:literal, $after:literal) => {
        concat!(
            "tileloadd tmm4, [{w} + {s} + 0]\n",
            "tileloadd tmm6, [{b} + {s} + ",
            $at,
            "]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tileloadd tmm7, [{b} + {s} + ",
            $after,
            "]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tileloadd tmm5, [{w} + {s} + 1024]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7"
        )
    };
}

impl Walk {
    /// Adds the products to `sums`.
    ///
    /// # Safety
    /// The tiles must be configured; those of the weight and the packed ones must be there, at least one step of them.
    unsafe fn run(&self, parts: Parts, halves: usize, sums: &mut Sums) {
        // Small parts first, as in `kernel`.
        // SAFETY: as for this function.
        unsafe {
            match (parts, halves) {
                (Parts::One, 1) => walk!(self, sums, 4096, 1024, [part!(0)]),
                (Parts::Two, 1) => walk!(self, sums, 4096, 2048, [part!(1024), part!(0)]),
                (Parts::Three, 1) => walk!(self, sums, 4096, 3072, [part!(2048), part!(1024), part!(0)]),
                (Parts::One, _) => walk!(self, sums, 2048, 2048, [part!(0, 1024)]),
                (Parts::Two, _) => walk!(self, sums, 2048, 4096, [part!(2048, 3072), part!(0, 1024)]),
                (Parts::Three, _) => {
                    walk!(self, sums, 2048, 6144, [part!(4096, 5120), part!(2048, 3072), part!(0, 1024)])
                }
            }
        }
    }
}
