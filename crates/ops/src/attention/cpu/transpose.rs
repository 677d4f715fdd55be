//! Transposing blocks of rows, so that queries lie along the vectors' lanes.

use super::scratch::{LINE, padded, pitch};
use pulp::Simd;

/// Transposes `columns` (whole lines) rows of `width` channels, a pitch apart and padded to whole lines, into rows of
/// `columns`, times `factor`.
#[inline(always)]
pub(super) fn transpose<S: Simd>(
    simd: S,
    from: &[f32],
    columns: usize,
    width: usize,
    factor: f32,
    to: &mut [f32],
) {
    let (row, width) = (pitch(width), padded(width));
    assert!(columns.is_multiple_of(LINE) && columns > 0, "transpose: {columns} columns are not whole lines");
    assert!(
        from.len() >= (columns - 1) * row + width && to.len() >= columns * width,
        "transpose: too few values"
    );
    for i in (0..columns).step_by(LINE) {
        for j in (0..width).step_by(LINE) {
            // SAFETY: the asserts: a square of lines fits at both places.
            unsafe {
                square(
                    simd,
                    from.as_ptr().add(i * row + j),
                    row,
                    factor,
                    to.as_mut_ptr().add(j * columns + i),
                    columns,
                );
            }
        }
    }
}

/// A square of [`LINE`] x [`LINE`] values.
#[inline(always)]
unsafe fn square<S: Simd>(
    simd: S,
    from: *const f32,
    from_row: usize,
    factor: f32,
    to: *mut f32,
    to_row: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if std::any::TypeId::of::<S>() == std::any::TypeId::of::<pulp::x86::V4>() {
        // SAFETY: the caller's; a V4 only exists where AVX-512 does.
        return unsafe { square_avx512(from, from_row, factor, to, to_row) };
    }
    // Half a line at a time: more would not fit the registers.
    const SIDE: usize = 8;
    let _ = simd;
    for i in (0..LINE).step_by(SIDE) {
        for j in (0..LINE).step_by(SIDE) {
            let mut rows = [[0.0f32; SIDE]; SIDE];
            // SAFETY: the caller's.
            unsafe {
                for (r, row) in rows.iter_mut().enumerate() {
                    *row = from.add((i + r) * from_row + j).cast::<[f32; SIDE]>().read();
                }
                for c in 0..SIDE {
                    let mut column = [0.0; SIDE];
                    for (value, row) in column.iter_mut().zip(&rows) {
                        *value = row[c] * factor;
                    }
                    to.add((j + c) * to_row + i).cast::<[f32; SIDE]>().write(column);
                }
            }
        }
    }
}

/// The square in 64 shuffles; what the compiler makes of the loops above takes three times as long.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn square_avx512(from: *const f32, from_row: usize, factor: f32, to: *mut f32, to_row: usize) {
    use std::arch::x86_64::*;
    let factor = _mm512_set1_ps(factor);
    let mut rows = [factor; LINE];
    for (r, row) in rows.iter_mut().enumerate() {
        // SAFETY: the caller's.
        *row = _mm512_mul_ps(unsafe { _mm512_loadu_ps(from.add(r * from_row)) }, factor);
    }
    // Lane l of quads[4 g + c] becomes column 4 l + c of the rows 4 g .. 4 g + 4.
    let mut quads = rows;
    for (quad, rows) in quads.chunks_exact_mut(4).zip(rows.chunks_exact(4)) {
        let pair =
            |a, b| (_mm512_castps_pd(_mm512_unpacklo_ps(a, b)), _mm512_castps_pd(_mm512_unpackhi_ps(a, b)));
        let ((low0, high0), (low1, high1)) = (pair(rows[0], rows[1]), pair(rows[2], rows[3]));
        quad[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low0, low1));
        quad[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low0, low1));
        quad[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high0, high1));
        quad[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high0, high1));
    }
    for c in 0..4 {
        const EVEN: i32 = 0x88;
        const ODD: i32 = 0xdd;
        let [a, b, c0, d] = [quads[c], quads[4 + c], quads[8 + c], quads[12 + c]];
        let (even0, odd0) = (_mm512_shuffle_f32x4::<EVEN>(a, b), _mm512_shuffle_f32x4::<ODD>(a, b));
        let (even1, odd1) = (_mm512_shuffle_f32x4::<EVEN>(c0, d), _mm512_shuffle_f32x4::<ODD>(c0, d));
        let columns = [
            _mm512_shuffle_f32x4::<EVEN>(even0, even1),
            _mm512_shuffle_f32x4::<EVEN>(odd0, odd1),
            _mm512_shuffle_f32x4::<ODD>(even0, even1),
            _mm512_shuffle_f32x4::<ODD>(odd0, odd1),
        ];
        for (lane, column) in columns.into_iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { _mm512_storeu_ps(to.add((4 * lane + c) * to_row), column) };
        }
    }
}
