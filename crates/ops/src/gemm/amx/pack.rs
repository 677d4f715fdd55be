//! Packing for tiles: values become bf16 parts, two steps of k to a word.
//!
//! A block is 32 rows (of `a`) or columns (of `b`), here "lines", by 32 steps of k: per part two tiles of 16 lines, 1 KiB
//! each. Tiles of `a` are [16 lines, 16 words], tiles of `b` [16 words, 16 lines]. Blocks follow one another along k,
//! then along lines; what lies beyond the operand is zero.

use super::{BLOCK, KT, Parts};
use crate::gemm::{
    view::{Element, View},
    x86::{lanes, load, transpose},
};
use std::arch::x86_64::*;

/// Words of a tile.
const TILE: usize = 256;

/// Packs `from` [lines, k], times `scale`.
///
/// # Safety
/// `to` must hold the blocks and AVX-512 with bf16 must be usable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn pack<E: Element>(
    from: View<'_, E>,
    scale: f32,
    parts: Parts,
    words_first: bool,
    to: *mut u32,
) {
    let source = Source { from, scale: _mm512_set1_ps(scale), parts, to };
    let along_k = from.col_stride == 1;
    let (steps, tiles) = (from.cols.div_ceil(KT), from.rows.div_ceil(BLOCK) * 2);
    // SAFETY: as for this function; lines and steps beyond the operand are read as zeros.
    unsafe {
        // Memory is read in the order in which it lies; where that is also a tile's order, row by row.
        match (along_k, words_first) {
            (true, false) => {
                for line in 0..16 * tiles {
                    for step in 0..steps {
                        let (high, low) = source.line(line, step);
                        source.store(line / 16, step, line % 16, high, low);
                    }
                }
            }
            (false, true) => {
                for word in 0..16 * steps {
                    for tile in 0..tiles {
                        let (high, low) = source.word(tile, word);
                        source.store(tile, word / 16, word % 16, high, low);
                    }
                }
            }
            (true, true) => {
                for tile in 0..tiles {
                    for step in 0..steps {
                        source.transposed(tile, step, |r| source.line(16 * tile + r, step));
                    }
                }
            }
            (false, false) => {
                for step in 0..steps {
                    for tile in 0..tiles {
                        source.transposed(tile, step, |r| source.word(tile, 16 * step + r));
                    }
                }
            }
        }
    }
}

struct Source<'a, E> {
    from: View<'a, E>,
    scale: __m512,
    parts: Parts,
    to: *mut u32,
}

impl<E: Element> Source<'_, E> {
    /// The parts of 32 steps of k of a line.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn line(&self, line: usize, step: usize) -> (__m512i, __m512i) {
        let k = self.from.cols - step * KT;
        let (first, second) =
            if line < self.from.rows { (lanes(k), lanes(k.saturating_sub(16))) } else { (0, 0) };
        let from = self.from.ptr.wrapping_add(line * self.from.row_stride + step * KT);
        // SAFETY: masks admit what exists.
        unsafe { split(self.load(first, from), self.load(second, from.wrapping_add(16)), self.parts) }
    }

    /// The parts of one word, two steps of k, of a tile's 16 lines.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn word(&self, tile: usize, word: usize) -> (__m512i, __m512i) {
        let mask = lanes(self.from.rows.saturating_sub(16 * tile));
        let first = if 2 * word < self.from.cols { mask } else { 0 };
        let second = if 2 * word + 1 < self.from.cols { mask } else { 0 };
        let stride = self.from.col_stride;
        let from = self.from.ptr.wrapping_add(16 * tile + 2 * word * stride);
        // SAFETY: masks admit what exists.
        let (high, low) = unsafe {
            split(self.load(first, from), self.load(second, from.wrapping_add(stride)), self.parts)
        };
        (interleave(high), interleave(low))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(&self, mask: __mmask16, from: *const E) -> __m512 {
        // SAFETY: as for the function.
        _mm512_mul_ps(unsafe { load(mask, from) }, self.scale)
    }

    /// Writes the transpose of what `row` gives as a tile.
    #[inline(always)]
    unsafe fn transposed(&self, tile: usize, step: usize, row: impl Fn(usize) -> (__m512i, __m512i)) {
        // SAFETY: any bits are integers.
        let (mut highs, mut lows): ([__m512i; 16], [__m512i; 16]) = unsafe { std::mem::zeroed() };
        for r in 0..16 {
            (highs[r], lows[r]) = row(r);
        }
        // SAFETY: AVX-512 is usable, the tile lies within `to`.
        unsafe {
            (highs, lows) = (transpose(highs), transpose(lows));
            for r in 0..16 {
                self.store(tile, step, r, highs[r], lows[r]);
            }
        }
    }

    /// Writes row `r` of a tile.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(&self, tile: usize, step: usize, r: usize, high: __m512i, low: __m512i) {
        let steps = self.from.cols.div_ceil(KT);
        let block = (tile / 2 * steps + step) * self.parts.count();
        // SAFETY: a block is two tiles a part.
        unsafe {
            let to = self.to.add((2 * block + tile % 2) * TILE + 16 * r);
            _mm512_store_si512(to.cast(), high);
            if self.parts == Parts::Two {
                _mm512_store_si512(to.add(2 * TILE).cast(), low);
            }
        }
    }
}

/// The bf16 parts of `x` (lower half) and `y` (upper half).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn split(x: __m512, y: __m512, parts: Parts) -> (__m512i, __m512i) {
    let high = round(x, y);
    if parts == Parts::One {
        return (high, high);
    }
    let rest = |value: __m512, half: __m256i| {
        let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half));
        _mm512_sub_ps(value, _mm512_castsi512_ps(wide))
    };
    let low = round(rest(x, _mm512_castsi512_si256(high)), rest(y, _mm512_extracti64x4_epi64::<1>(high)));
    (high, low)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn round(x: __m512, y: __m512) -> __m512i {
    // SAFETY: both are 64 bytes of 32 bf16.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(y, x)) }
}

/// Pairs (i, 16 + i) of 16-bit values as words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave(values: __m512i) -> __m512i {
    let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(values));
    let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(values));
    _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
}
