//! Launches of `few.cu`: products that are bound by reading their weight.

use super::{
    Fused,
    product::{self, Product},
};
use crate::cuda::{Launch, Mat, Module, gpu_of, launch, module};
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("linear_few");

/// Tokens at most; from three on arithmetic takes longer than memory.
const TOKENS: usize = 2;
/// Rows of the weight of a block.
const ROWS: usize = 4;

/// Whether the kernel takes these.
pub(super) fn serves(x: &Tensor, w: &Tensor) -> bool {
    product::serves(x, w, TOKENS)
}

/// See [`super::forward_fused`]; `x` and `w` are such that the kernel [`serves`] them.
pub(super) fn run(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, fused: Fused<'_>, out: &Tensor) {
    let gpu = gpu_of(out);
    let product = Product::new(gpu, x, w, bias, fused, out);
    if out.is_empty() {
        return;
    }
    let name = if x.rows() == 1 { "few_rows_1" } else { "few_rows_2" };
    let of_a_block = if fused.gate.is_some() { ROWS / 2 } else { ROWS };
    launch!(gpu, KERNELS, name, Launch::blocks(out.cols().div_ceil(of_a_block), 128).early();
        Mat::of(x), w.address(), product);
}
