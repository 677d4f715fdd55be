//! Row loops that the compiler vectorises: integer shifts and adds only.

use crate::simd::{Kernel, Rows, block_rows, launch};
use keyfold_core::DType;
use keyfold_tensor::{Tensor, bf16};
use pulp::Simd;
use std::ops::Range;

pub(super) fn copy(x: &Tensor, out: &mut Tensor) {
    let (rows, cols) = (x.rows(), x.cols());
    let block = block_rows(cols);
    match (x.dtype(), out.dtype()) {
        (DType::F32, DType::F32) => launch(rows, block, &Plain { x: Rows::of(x), out: Rows::of(out), cols }),
        (DType::Bf16, DType::Bf16) => {
            launch(rows, block, &Plain { x: Rows::of_bf16(x), out: Rows::of_bf16(out), cols });
        }
        (DType::Bf16, DType::F32) => {
            launch(rows, block, &Widen { x: Rows::of_bf16(x), out: Rows::of(out), cols })
        }
        (DType::F32, DType::Bf16) => {
            launch(rows, block, &Narrow { x: Rows::of(x), out: Rows::of_bf16(out), cols })
        }
        (DType::Fp8, _) | (_, DType::Fp8) => DType::Fp8.unsupported("cast"),
    }
}

struct Plain<T> {
    x: Rows<T>,
    out: Rows<T>,
    cols: usize,
}

impl<T: Copy> Kernel for Plain<T> {
    #[inline(always)]
    fn run<S: Simd>(&self, _: S, rows: Range<usize>) {
        for row in rows {
            // SAFETY: both have that row; `copy` also allows both to be the same one.
            unsafe { self.x.row(row).copy_to(self.out.row(row), self.cols) };
        }
    }
}

struct Widen {
    x: Rows<bf16>,
    out: Rows,
    cols: usize,
}

impl Kernel for Widen {
    #[inline(always)]
    fn run<S: Simd>(&self, _: S, rows: Range<usize>) {
        for row in rows {
            // SAFETY: both have that row, and tensors of different types do not overlap.
            unsafe { widen(self.x.row(row), self.out.row(row), self.cols) };
        }
    }
}

struct Narrow {
    x: Rows,
    out: Rows<bf16>,
    cols: usize,
}

impl Kernel for Narrow {
    #[inline(always)]
    fn run<S: Simd>(&self, _: S, rows: Range<usize>) {
        for row in rows {
            // SAFETY: as for `Widen`.
            unsafe { narrow(self.x.row(row), self.out.row(row), self.cols) };
        }
    }
}

/// Writes `len` bf16 as f32.
///
/// # Safety
/// `x` must be readable, `out` writable, and they must not overlap.
#[inline(always)]
pub(crate) unsafe fn widen(x: *const bf16, out: *mut f32, len: usize) {
    for i in 0..len {
        // SAFETY: the caller's.
        unsafe { *out.add(i) = f32::from_bits(u32::from((*x.add(i)).to_bits()) << 16) };
    }
}

/// Writes `len` f32 as bf16.
///
/// # Safety
/// `x` must be readable, `out` writable, and they must not overlap.
#[inline(always)]
unsafe fn narrow(x: *const f32, out: *mut bf16, len: usize) {
    for i in 0..len {
        // SAFETY: the caller's.
        let (value, bits) = unsafe { (*x.add(i), (*x.add(i)).to_bits()) };
        // Half of the last kept bit, less one where that bit is even: ties go to even.
        let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
        // Rounding could carry a NaN's payload away: keep the sign and set the quiet bit.
        let quiet = (bits >> 16) as u16 | 0x40;
        // SAFETY: the caller's.
        unsafe { *out.add(i) = bf16::from_bits(if value.is_nan() { quiet } else { rounded }) };
    }
}
