//! Rows of a cache in 8 bits: elements of e4m3, and behind them a scale for every [`SCALE_BLOCK`] columns.
//!
//! A row of [`DType::Fp8`] is laid out as `keyfold_core::row_width` says. Scales are powers of two (e8m0: the exponent plus 127),
//! the smallest by which the largest value of the block fits e4m3: they cost no precision, so that each element keeps four
//! significant bits however large its neighbours in other blocks, other rows, are. Exponents are limited to what f16 holds, which
//! is what kernels compute with.

#[cfg(feature = "cuda")]
mod cuda;
mod reference;
#[cfg(test)]
mod tests;

use crate::{dispatch::by_device, indices::Indices};
use keyfold_core::{DType, SCALE_BLOCK};
use keyfold_tensor::Tensor;

/// Least and largest exponent of a scale.
pub(crate) const EXPONENTS: [i32; 2] = [-24, 7];

/// Some columns of the rows of a cache, and the scales of those rows.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// A row per token.
    pub values: &'a Tensor,
    /// Of the same rows: all columns behind the elements.
    pub scales: &'a Tensor,
}

impl<'a> Rows<'a> {
    /// The number of the first column's block.
    ///
    /// # Panics
    /// When the two are not of the same rows, or the columns do not begin a block.
    pub(crate) fn block(&self) -> usize {
        let Self { values, scales } = self;
        assert!(
            (values.dtype(), scales.dtype()) == (DType::Fp8, DType::Fp8)
                && (values.rows(), values.stride()) == (scales.rows(), scales.stride())
                && values.address() < scales.address(),
            "fp8: values and scales of different rows"
        );
        let apart = (scales.address() - values.address()) as usize;
        let column = (values.stride() - scales.cols()).wrapping_sub(apart);
        assert!(
            column.is_multiple_of(SCALE_BLOCK) && column + values.cols() <= values.stride() - scales.cols(),
            "fp8: columns from {column} on, a multiple of {SCALE_BLOCK} was expected"
        );
        column / SCALE_BLOCK
    }

    /// The values of row `at`.
    pub(crate) fn row(self, at: usize) -> Vec<f32> {
        reference::row(self, at, self.block())
    }

    /// The rows of all columns and those of their scales, of a cache whose rows have `elements` elements.
    pub fn split(rows: &Tensor, elements: usize) -> [Tensor; 2] {
        [rows.columns(0, elements), rows.columns(elements, rows.cols() - elements)]
    }
}

/// Rows into 8 bits: `out[at[r]] = x[r]`. Blocks that `x` ends in the middle of are scaled by what it has of them.
///
/// # Shapes
/// `x` `[rows, cols]` f32 or bf16, `at` `[rows]` below `places`, `out` `[places, cols]`.
///
/// # Panics
/// When the shapes do not fit, a place is not in `out`, or the columns of `out` do not begin a block.
pub fn store(x: &Tensor, at: &Indices, out: Rows<'_>) {
    let (places, cols) = (out.values.rows(), out.values.cols());
    assert_eq!((x.rows(), x.cols()), (at.len(), cols), "fp8: rows to store, and their columns");
    assert!(at.values().iter().all(|at| (*at as usize) < places), "fp8: a place is not below {places}");
    let block = out.block();
    by_device!(x, reference::store(x, at, out, block), cuda::store(x, at, out, block));
}

/// Rows out of 8 bits: `out[r] = rows[at[r]]`.
///
/// # Shapes
/// `rows` `[places, cols]`, `at` `[rows]` below `places`, `out` `[rows, cols]` f32 or bf16.
///
/// # Panics
/// When the shapes do not fit, a place is not in `rows`, or the columns of `rows` do not begin a block.
pub fn load(rows: Rows<'_>, at: &Indices, out: &mut Tensor) {
    let (places, cols) = (rows.values.rows(), rows.values.cols());
    assert_eq!((out.rows(), out.cols()), (at.len(), cols), "fp8: rows to load, and their columns");
    assert!(at.values().iter().all(|at| (*at as usize) < places), "fp8: a place is not below {places}");
    let block = rows.block();
    by_device!(out, reference::load(rows, at, out, block), cuda::load(rows, at, out, block));
}
