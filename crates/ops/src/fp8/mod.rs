//! Rows of a cache in 8 bits: elements of e4m3, and a scale for every [`SCALE_BLOCK`] columns.
//!
//! Elements of all rows come first, `[places, elements]`, and right behind them scales, `[blocks, places]`. A row has no other
//! bytes than its elements, so that rows of whole lines share none with their neighbours; scales of neighbouring rows lie side by
//! side, so that those of a page are one piece. Scales are powers of two (e8m0: the exponent plus 127), the smallest by which the
//! largest value of the block fits e4m3: they cost no precision, so that each element keeps four significant bits however large
//! its neighbours in other blocks, other rows, are. Exponents are limited to what f16 holds, which is what kernels compute
//! with. Blocks may share the scale of the largest of them: e4m3 has 15 exponents of its own, so that only
//! what is below 2^-15 of that has fewer bits. Those of wide heads do: see [`sharing`].

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

/// Columns that have one scale, of heads of `width` columns: all of a head of 256, which attention multiplies as it lies there
/// (paged/direct.cuh); of other heads every block has its own.
pub fn sharing(width: usize) -> usize {
    if width == 256 { width } else { SCALE_BLOCK }
}

/// Some columns of the rows of a cache, and the scales of the whole rows.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// A row per token: `[places, cols]`.
    pub values: &'a Tensor,
    /// What is behind the elements of all these rows: `[blocks, places]`.
    pub scales: &'a Tensor,
}

impl<'a> Rows<'a> {
    /// The number of the first column's block.
    ///
    /// # Panics
    /// When the two are not of the same rows, or the columns do not begin a block.
    pub(crate) fn block(&self) -> usize {
        let Self { values, scales } = self;
        let elements = values.stride();
        let first = scales.address().wrapping_sub((values.rows() * elements) as u64);
        let column = values.address().wrapping_sub(first) as usize;
        assert!(
            (values.dtype(), scales.dtype()) == (DType::Fp8, DType::Fp8)
                && (values.rows(), elements.div_ceil(SCALE_BLOCK)) == (scales.cols(), scales.rows())
                && scales.is_contiguous()
                && column <= elements
                && values.cols() <= elements - column,
            "fp8: values and scales of different rows"
        );
        assert!(
            column.is_multiple_of(SCALE_BLOCK),
            "fp8: columns from {column} on, a multiple of {SCALE_BLOCK} was expected"
        );
        column / SCALE_BLOCK
    }

    /// Address of the scales of block `block`, one for each place.
    #[cfg(feature = "cuda")]
    pub(crate) fn scales_from(&self, block: usize) -> u64 {
        self.scales.address() + (block * self.scales.cols()) as u64
    }

    /// The values of row `at`.
    pub(crate) fn row(self, at: usize) -> Vec<f32> {
        reference::row(self, at, self.block())
    }

    /// The rows of all columns and their scales, of a cache whose rows have `elements` elements.
    ///
    /// # Shapes
    /// `memory` `[places, row_width]`: see `keyfold_core::row_width`.
    ///
    /// # Panics
    /// When `memory` has gaps or is too small.
    pub fn split(memory: &Tensor, elements: usize) -> [Tensor; 2] {
        let (places, blocks) = (memory.rows(), elements.div_ceil(SCALE_BLOCK));
        let all = memory.reshape(1, memory.len());
        let part = |start, rows: usize, cols: usize| all.columns(start, rows * cols).reshape(rows, cols);
        [part(0, places, elements), part(places * elements, blocks, places)]
    }
}

/// The rows of a cache's `memory` of any element type, which have `elements` elements, and the scales of one in 8 bits.
///
/// # Panics
/// As [`Rows::split`].
pub fn rows_of(memory: &Tensor, elements: usize) -> (Tensor, Option<Tensor>) {
    match memory.dtype() {
        DType::Fp8 => {
            let [rows, scales] = Rows::split(memory, elements);
            (rows, Some(scales))
        }
        DType::F32 | DType::Bf16 => (memory.clone(), None),
    }
}

/// Rows into 8 bits: `out[at[r]] = x[r]`; `sharing` columns each have one scale, a byte in each of their blocks. Where `x` ends
/// within these, they are scaled by what it has of them.
///
/// # Shapes
/// `x` `[rows, cols]` f32 or bf16, `at` `[rows]` below `places`, `out` `[places, cols]`; `sharing` a multiple of [`SCALE_BLOCK`].
///
/// # Panics
/// When the shapes do not fit, a place is not in `out`, or the columns of `out` do not begin a block.
pub fn store(x: &Tensor, at: &Indices, out: Rows<'_>, sharing: usize) {
    let (places, cols) = (out.values.rows(), out.values.cols());
    assert_eq!((x.rows(), x.cols()), (at.len(), cols), "fp8: rows to store, and their columns");
    assert!(
        sharing > 0 && sharing.is_multiple_of(SCALE_BLOCK),
        "fp8: {sharing} columns of one scale, a multiple of {SCALE_BLOCK} was expected"
    );
    assert!(at.values().iter().all(|at| (*at as usize) < places), "fp8: a place is not below {places}");
    let block = out.block();
    by_device!(x, reference::store(x, at, out, block, sharing), cuda::store(x, at, out, block, sharing));
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
