//! Products of 32 x 32 outputs for ops that pack their operands themselves.

use super::{
    Parts, kernel, pack,
    panel::{self, Walk},
};
use crate::gemm::{View, view::Element};
use pulp::x86::V4;
use std::arch::x86_64::*;

/// Rows and columns of a block.
pub(crate) const BLOCK: usize = panel::BLOCK;
/// Steps of k that are packed as one.
pub(crate) const STEP: usize = super::KT;
/// Words of a step of a packed block.
pub(crate) const WORDS: usize = panel::WORDS;

/// Proof that this thread may multiply blocks: while it exists the tiles are set up.
pub(crate) struct Tiles(V4);

impl Tiles {
    /// The tiles, where they can be had.
    pub(crate) fn new() -> Option<Self> {
        if !super::available() {
            return None;
        }
        let simd = V4::try_new()?;
        // SAFETY: AMX was found.
        unsafe { kernel::configure() };
        Some(Self(simd))
    }

    /// The vectors of this processor.
    pub(crate) fn simd(&self) -> V4 {
        self.0
    }

    /// Packs lines as blocks of a left operand: 32 lines, all their steps of k, the next 32.
    pub(crate) fn pack_left<E: Element>(&self, lines: View<'_, E>, to: &mut [f32]) {
        assert!(to.len() >= words(lines.rows(), lines.cols()), "room for packed lines");
        // SAFETY: AVX-512 with bf16 comes with AMX; the assert.
        unsafe { pack::pack(lines, 1.0, Parts::One, false, 2, to.as_mut_ptr().cast()) };
    }

    /// Packs lines, times `scale`, as blocks of a right operand.
    pub(crate) fn pack_right<E: Element>(&self, lines: View<'_, E>, scale: f32, to: &mut [f32]) {
        assert!(to.len() >= words(lines.rows(), lines.cols()), "room for packed lines");
        // SAFETY: AVX-512 with bf16 comes with AMX; the assert.
        unsafe { pack::pack(lines, scale, Parts::One, true, 2, to.as_mut_ptr().cast()) };
    }

    /// Packs the columns of `rows` (`k` of them, each `cols` long, which is a multiple of 16) as blocks of a right operand.
    pub(crate) fn pack_columns(&self, rows: &[f32], k: usize, cols: usize, to: &mut [f32]) {
        assert!(cols.is_multiple_of(16) && rows.len() >= k * cols, "rows to pack");
        assert!(to.len() >= words(cols, k), "room for packed columns");
        // SAFETY: AVX-512 with bf16 comes with AMX; the asserts.
        unsafe { columns(rows.as_ptr(), k, cols, to.as_mut_ptr().cast()) };
    }

    /// A block of `out`, whose rows are `stride` apart: the product of `steps` packed steps, added where `add` is set.
    pub(crate) fn multiply(
        &self,
        a: &[f32],
        b: &[f32],
        steps: usize,
        out: &mut [f32],
        stride: usize,
        add: bool,
    ) {
        assert!(steps > 0 && a.len() >= steps * WORDS && b.len() >= steps * WORDS, "packed operands");
        assert!(out.len() >= (BLOCK - 1) * stride + BLOCK, "a block of sums");
        let out = out.as_mut_ptr();
        let (a, panel) = (a.as_ptr().cast(), b.as_ptr().cast());
        let walk = Walk {
            a,
            panel,
            steps,
            out,
            out_stride: stride,
            add,
            two: true,
            next_out: out,
            next_stride: stride,
        };
        // SAFETY: the tiles are set up; the asserts.
        unsafe { walk.run(Parts::One) };
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: AMX was found.
        unsafe { kernel::release() };
    }
}

/// Words of `lines` by `k` values.
pub(crate) fn words(lines: usize, k: usize) -> usize {
    lines.div_ceil(BLOCK) * k.div_ceil(STEP) * WORDS
}

/// # Safety
/// The rows must be there, `to` have room, AVX-512 with bf16 be usable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn columns(rows: *const f32, k: usize, cols: usize, to: *mut u32) {
    let steps = k.div_ceil(STEP);
    // Word i of a line is value i of both rows.
    let pairs: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 16) as u16);
    // SAFETY: rows below `k` are there; every tile lies within `to`.
    unsafe {
        let pairs = _mm512_loadu_si512(pairs.as_ptr().cast());
        let row = |row: usize, at: usize| match row < k {
            true => _mm512_loadu_ps(rows.add(row * cols + at)),
            false => _mm512_setzero_ps(),
        };
        for pair in 0..16 * steps {
            for tile in 0..cols / 16 {
                let [values] = pack::split::<1>(row(2 * pair, 16 * tile), row(2 * pair + 1, 16 * tile));
                let block = tile / 2 * steps + pair / 16;
                let to = to.add(block * WORDS + tile % 2 * (WORDS / 2) + pair % 16 * 16);
                _mm512_store_si512(to.cast(), _mm512_permutexvar_epi16(pairs, values));
            }
            // The last block may have one tile of columns.
            if cols / 16 % 2 == 1 {
                let block = cols / 32 * steps + pair / 16;
                let to = to.add(block * WORDS + WORDS / 2 + pair % 16 * 16);
                _mm512_store_si512(to.cast(), _mm512_setzero_si512());
            }
        }
    }
}
