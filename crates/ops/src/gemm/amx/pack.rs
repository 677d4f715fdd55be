//! Packing for tiles: values become bf16 parts, two steps of k to a word.
//!
//! A block is 32 rows (of `a`) or columns (of `b`), here "lines", by 32 steps of k: per part two tiles of 16 lines, 1 KiB
//! each (or 16 lines and one tile). Tiles of `a` are [16 lines, 16 words], tiles of `b` [16 words, 16 lines]. Blocks follow one another along k,
//! then along lines; what lies beyond the operand is zero.

use super::{KT, Parts};
use crate::gemm::{
    view::{Element, View},
    x86::{lanes, load, transpose},
};
use std::arch::x86_64::*;

/// Words of a tile.
const TILE: usize = 256;

/// Packs `from` [lines, k], times `scale`, in blocks of `halves` tiles a part. Values that are bf16 already are one part and are not scaled.
///
/// # Safety
/// `to` must hold the blocks and AVX-512 with bf16 must be usable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn pack<E: Element>(
    from: View<'_, E>,
    scale: f32,
    parts: Parts,
    words_first: bool,
    halves: usize,
    to: *mut u32,
) {
    let scale = _mm512_set1_ps(scale);
    // SAFETY: as for this function.
    unsafe {
        match parts {
            Parts::One => Source::<E, 1> { from, scale, halves, to }.pack(words_first),
            Parts::Two => Source::<E, 2> { from, scale, halves, to }.pack(words_first),
            Parts::Three => Source::<E, 3> { from, scale, halves, to }.pack(words_first),
        }
    }
}

/// Rows of tiles: 32 bf16 of every part.
pub(super) type Parted<const P: usize> = [__m512i; P];

struct Source<'a, E, const P: usize> {
    from: View<'a, E>,
    scale: __m512,
    halves: usize,
    to: *mut u32,
}

impl<E: Element, const P: usize> Source<'_, E, P> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn pack(&self, words_first: bool) {
        let along_k = self.from.col_stride == 1;
        let (steps, halves) = (self.from.cols.div_ceil(KT), self.halves);
        let tiles = self.from.rows.div_ceil(16 * halves) * halves;
        // SAFETY: as for `pack`; lines and steps beyond the operand are read as zeros.
        unsafe {
            // Memory is read in the order in which it lies; where that is also a tile's order, row by row.
            match (along_k, words_first) {
                (true, false) => {
                    for line in 0..16 * tiles {
                        for step in 0..steps {
                            self.store(line / 16, step, line % 16, self.line(line, step));
                        }
                    }
                }
                (false, true) => {
                    for word in 0..16 * steps {
                        for tile in 0..tiles {
                            self.store(tile, word / 16, word % 16, self.word(tile, word));
                        }
                    }
                }
                (true, true) => {
                    for tile in 0..tiles {
                        for step in 0..steps {
                            self.transposed(tile, step, |r| self.line(16 * tile + r, step));
                        }
                    }
                }
                (false, false) => {
                    for step in 0..steps {
                        for tile in 0..tiles {
                            self.transposed(tile, step, |r| self.word(tile, 16 * step + r));
                        }
                    }
                }
            }
        }
    }

    /// The parts of 32 steps of k of a line.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn line(&self, line: usize, step: usize) -> Parted<P> {
        let k = self.from.cols - step * KT;
        let (first, second) =
            if line < self.from.rows { (lanes(k), lanes(k.saturating_sub(16))) } else { (0, 0) };
        let from = self.from.ptr.wrapping_add(line * self.from.row_stride + step * KT);
        // SAFETY: masks admit what exists.
        unsafe {
            if E::IS_BF16 {
                let mask = u32::from(first) | u32::from(second) << 16;
                return [_mm512_maskz_loadu_epi16(mask, from.cast()); P];
            }
            split(self.load(first, from), self.load(second, from.wrapping_add(16)))
        }
    }

    /// The parts of one word, two steps of k, of a tile's 16 lines.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn word(&self, tile: usize, word: usize) -> Parted<P> {
        let mask = lanes(self.from.rows.saturating_sub(16 * tile));
        let first = if 2 * word < self.from.cols { mask } else { 0 };
        let second = if 2 * word + 1 < self.from.cols { mask } else { 0 };
        let stride = self.from.col_stride;
        let from = self.from.ptr.wrapping_add(16 * tile + 2 * word * stride);
        // SAFETY: masks admit what exists.
        let mut parts: Parted<P> =
            unsafe { split(self.load(first, from), self.load(second, from.wrapping_add(stride))) };
        for part in &mut parts {
            *part = interleave(*part);
        }
        parts
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(&self, mask: __mmask16, from: *const E) -> __m512 {
        // SAFETY: as for the function.
        _mm512_mul_ps(unsafe { load(mask, from) }, self.scale)
    }

    /// Writes the transpose of what `row` gives as a tile.
    #[inline(always)]
    unsafe fn transposed(&self, tile: usize, step: usize, row: impl Fn(usize) -> Parted<P>) {
        // SAFETY: any bits are integers.
        let mut rows: [[__m512i; 16]; P] = unsafe { std::mem::zeroed() };
        for r in 0..16 {
            for (rows, part) in rows.iter_mut().zip(row(r)) {
                rows[r] = part;
            }
        }
        // SAFETY: AVX-512 is usable, the tile lies within `to`.
        unsafe {
            for rows in &mut rows {
                *rows = transpose(*rows);
            }
            for r in 0..16 {
                let mut parts = [_mm512_setzero_si512(); P];
                for (part, rows) in parts.iter_mut().zip(&rows) {
                    *part = rows[r];
                }
                self.store(tile, step, r, parts);
            }
        }
    }

    /// Writes row `r` of a tile.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(&self, tile: usize, step: usize, r: usize, parts: Parted<P>) {
        let (steps, halves) = (self.from.cols.div_ceil(KT), self.halves);
        let block = (tile / halves * steps + step) * P;
        for (number, part) in parts.into_iter().enumerate() {
            // SAFETY: a block is `halves` tiles a part.
            unsafe {
                let to = self.to.add((halves * (block + number) + tile % halves) * TILE + 16 * r);
                _mm512_store_si512(to.cast(), part);
            }
        }
    }
}

/// The bf16 parts of `x` (lower halves) and `y` (upper halves), each of what the ones before leave.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn split<const P: usize>(mut x: __m512, mut y: __m512) -> Parted<P> {
    let rest = |value: __m512, half: __m256i| {
        let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half));
        _mm512_sub_ps(value, _mm512_castsi512_ps(wide))
    };
    let mut parts = [_mm512_setzero_si512(); P];
    for (number, part) in parts.iter_mut().enumerate() {
        *part = round(x, y);
        if number + 1 < P {
            x = rest(x, _mm512_castsi512_si256(*part));
            y = rest(y, _mm512_extracti64x4_epi64::<1>(*part));
        }
    }
    parts
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
