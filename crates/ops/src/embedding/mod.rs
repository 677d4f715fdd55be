//! Token embedding: one row of a table per token.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::{dispatch::by_device, indices::Indices};
use keyfold_tensor::Tensor;

/// `out[t] = table[ids[t]]`.
///
/// # Shapes
/// - ids: `[tokens]`, below `vocabulary`
/// - table: `[vocabulary, width]`, f32 or bf16
/// - out: `[tokens, width]`
///
/// # Panics
/// When the shapes do not fit or an id is not in the table.
pub fn forward(ids: &[u32], table: &Tensor, out: &mut Tensor) {
    check("embedding", ids, table, out);
    by_device!(out, cpu::forward(ids, table, out), cuda::forward(ids, table, out));
}

/// As [`forward`], with ids that lie where the table does.
///
/// # Panics
/// As [`forward`].
pub fn gather(ids: &Indices, table: &Tensor, out: &mut Tensor) {
    check("embedding::gather", ids.values(), table, out);
    by_device!(out, cpu::forward(ids.values(), table, out), cuda::gather(ids, table, out));
}

/// `d_table[ids[t]] += d_out[t]`, in the order of the tokens, so that the result is the same for any number of threads.
///
/// # Shapes
/// - ids: `[tokens]`, below `vocabulary`
/// - d_out: `[tokens, width]`
/// - d_table: `[vocabulary, width]`, added to
///
/// # Panics
/// When the shapes do not fit or an id is not in the table.
pub fn backward(ids: &[u32], d_out: &Tensor, d_table: &mut Tensor) {
    check("embedding::backward", ids, d_table, d_out);
    by_device!(d_out, cpu::backward(ids, d_out, d_table), cuda::backward(ids, d_out, d_table));
}

fn check(op: &str, ids: &[u32], table: &Tensor, out: &Tensor) {
    assert_eq!((out.rows(), out.cols()), (ids.len(), table.cols()), "{op}: output for these ids and table");
    let vocabulary = table.rows();
    assert!(ids.iter().all(|id| (*id as usize) < vocabulary), "{op}: an id is not below {vocabulary}");
}
