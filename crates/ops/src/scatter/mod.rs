//! Rows to places: writing new tokens into a cache.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::{dispatch::by_device, indices::Indices};
use keyfold_tensor::Tensor;

/// `out[at[r]] = x[r]`, rounded to the element type of `out`. Of rows that go to one place, any may be there afterwards.
///
/// # Shapes
/// - x: `[rows, cols]`, f32 or bf16
/// - at: `[rows]`, below `places`
/// - out: `[places, cols]`, f32 or bf16
///
/// # Panics
/// When the shapes do not fit or a place is not in `out`.
pub fn rows(x: &Tensor, at: &Indices, out: &mut Tensor) {
    assert_eq!(x.rows(), at.len(), "scatter: a place for each row");
    assert_eq!(x.cols(), out.cols(), "scatter: columns");
    let places = out.rows();
    assert!(at.values().iter().all(|at| (*at as usize) < places), "scatter: a place is not below {places}");
    by_device!(x, cpu::rows(x, at.values(), out), cuda::rows(x, at, out));
}
