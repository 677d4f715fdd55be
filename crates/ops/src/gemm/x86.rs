//! AVX-512 pieces of packing.

use super::view::Element;
use std::arch::x86_64::*;

/// Lanes `.. count`.
#[inline]
pub(super) fn lanes(count: usize) -> __mmask16 {
    if count >= 16 { !0 } else { (1 << count) - 1 }
}

/// Up to 16 adjacent elements as f32, zeros elsewhere.
///
/// # Safety
/// The elements of `mask` must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn load<E: Element>(mask: __mmask16, from: *const E) -> __m512 {
    // SAFETY: masked lanes are not touched.
    unsafe {
        if E::IS_BF16 {
            let half = _mm256_maskz_loadu_epi16(mask, from.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        } else {
            _mm512_maskz_loadu_ps(mask, from.cast())
        }
    }
}

/// The transpose of a 16 x 16 matrix of words.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut a = r;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    // After this, b[4 i + j] holds, per 128-bit lane l, column 4 l + j of rows 4 i .. 4 i + 4.
    let mut b = a;
    for i in 0..4 {
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    let mut out = b;
    for j in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(b[j], b[4 + j]);
        let high = _mm512_shuffle_i32x4::<0x88>(b[8 + j], b[12 + j]);
        out[j] = _mm512_shuffle_i32x4::<0x88>(low, high);
        out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(low, high);
        let low = _mm512_shuffle_i32x4::<0xdd>(b[j], b[4 + j]);
        let high = _mm512_shuffle_i32x4::<0xdd>(b[8 + j], b[12 + j]);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(low, high);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(low, high);
    }
    out
}

/// Writes the transpose of `rows` x `cols` elements (rows `stride` apart, columns adjacent; at most 16 rows) as
/// `cols` rows of 16 words, `to_stride` apart, zeros beyond `rows`.
///
/// # Safety
/// The elements must be readable and the rows writable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn transpose_strip<E: Element>(
    from: *const E,
    stride: usize,
    rows: usize,
    cols: usize,
    to: *mut f32,
    to_stride: usize,
) {
    for p in (0..cols).step_by(16) {
        let count = (cols - p).min(16);
        let mask = lanes(count);
        let mut block = [_mm512_setzero_si512(); 16];
        // SAFETY: rows below `rows` and `count` columns exist.
        unsafe {
            if rows == 16 {
                for (r, row) in block.iter_mut().enumerate() {
                    *row = _mm512_castps_si512(load(mask, from.add(r * stride + p)));
                }
            } else {
                for (r, row) in block.iter_mut().enumerate().take(rows) {
                    *row = _mm512_castps_si512(load(mask, from.add(r * stride + p)));
                }
            }
            let block = transpose(block);
            let to = to.add(p * to_stride);
            if count == 16 {
                for (c, col) in block.iter().enumerate() {
                    _mm512_storeu_si512(to.add(c * to_stride).cast(), *col);
                }
            } else {
                for (c, col) in block.iter().enumerate().take(count) {
                    _mm512_storeu_si512(to.add(c * to_stride).cast(), *col);
                }
            }
        }
    }
}
