//! Packing: what a tile reads lies one after the other.

use super::{
    super::view::{Element, View},
    kernel::{MR, prefetch},
};
use pulp::Simd;

/// Rows by which memory is asked for ahead of copying: rows are too short for the processor to do it itself.
const AHEAD: usize = 8;

/// Words from one panel of packed rows to the next. A row of a panel is copied as eight words of which the last two
/// are overwritten by the next row: the last row's surplus falls into the gap.
pub(super) fn a_panel(k: usize) -> usize {
    (MR * k + 2).next_multiple_of(16)
}

/// Panels of `width` columns, each [k, columns rounded up to vectors], zeros beyond the last column.
///
/// # Safety
/// `to` must hold `b.rows * (b.cols rounded up to vectors)` values.
#[inline(always)]
pub(super) unsafe fn pack_b<S: Simd, B: Element>(b: View<'_, B>, width: usize, to: *mut f32) {
    let lanes = S::F32_LANES;
    if b.col_stride == 1 {
        // Row by row, as memory is fetched best, though each row scatters to all panels.
        for p in 0..b.rows {
            for j in (0..b.cols).step_by(width) {
                let cols = width.min(b.cols - j);
                let padded = cols.next_multiple_of(lanes);
                // SAFETY: the view has this row; panel j starts at j * k, all panels before it being full.
                unsafe {
                    let from = b.ptr.add(p * b.row_stride + j);
                    let to = to.add(j * b.rows + p * padded);
                    for c in (0..cols).step_by(64 / size_of::<B>()) {
                        prefetch(from.wrapping_add(AHEAD * b.row_stride + c));
                    }
                    for c in 0..cols {
                        *to.add(c) = (*from.add(c)).widen();
                    }
                    for c in cols..padded {
                        *to.add(c) = 0.0;
                    }
                }
            }
        }
        return;
    }
    for j in (0..b.cols).step_by(width) {
        let cols = width.min(b.cols - j);
        let padded = cols.next_multiple_of(lanes);
        // SAFETY: as above.
        unsafe { transpose_panel::<S, B>(b.part(0, j, b.rows, cols), padded, to.add(j * b.rows)) };
    }
}

#[inline(always)]
unsafe fn transpose_panel<S: Simd, B: Element>(b: View<'_, B>, padded: usize, to: *mut f32) {
    #[cfg(target_arch = "x86_64")]
    if S::F32_LANES == 16 && b.row_stride == 1 {
        for c in (0..b.cols).step_by(16) {
            // SAFETY: vectors of 16 lanes mean that pulp found AVX-512; columns from `c` on exist.
            unsafe {
                let from = b.ptr.add(c * b.col_stride);
                let cols = (b.cols - c).min(16);
                crate::gemm::x86::transpose_strip(from, b.col_stride, cols, b.rows, to.add(c), padded);
            }
        }
        return;
    }
    for c in 0..padded {
        for p in 0..b.rows {
            // SAFETY: the view has the element, the panel has room for it.
            unsafe {
                let from = b.ptr.wrapping_add(c * b.col_stride + p * b.row_stride);
                *to.add(p * padded + c) = if c < b.cols { (*from).widen() } else { 0.0 };
            }
        }
    }
}

/// Panels of MR rows, each [k, MR], [`a_panel`] words apart, anything beyond the last row.
///
/// # Safety
/// `to` must hold a panel for each MR rows.
#[inline(always)]
pub(super) unsafe fn pack_a(a: View<'_>, to: *mut f32) {
    let stride = a_panel(a.cols);
    for p in 0..a.cols {
        // SAFETY: rows and panels exist; eight words from row i on exist while i + 8 is at most the number of rows.
        unsafe {
            let from = a.ptr.add(p * a.col_stride);
            let to = to.add(p * MR);
            let mut panel = 0;
            if a.row_stride == 1 {
                for i in (0..a.rows).step_by(16) {
                    prefetch(from.wrapping_add(AHEAD * a.col_stride + i));
                }
                while panel * MR + 8 <= a.rows {
                    let words = from.add(panel * MR).cast::<[f32; 8]>().read_unaligned();
                    to.add(panel * stride).cast::<[f32; 8]>().write_unaligned(words);
                    panel += 1;
                }
            }
            for i in panel * MR..a.rows {
                *to.add(i / MR * stride + i % MR) = *from.add(i * a.row_stride);
            }
        }
    }
}
