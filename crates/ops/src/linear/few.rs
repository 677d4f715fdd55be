//! Launches of `few.cu`: products that are bound by reading their weight.

use super::{
    Fused,
    product::{self, Product},
    skinny,
};
use crate::cuda::{Launch, Mat, Module, gpu_of, launch, module};
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("linear_few");

/// Tokens at most; from three on arithmetic takes longer than memory.
const TOKENS: usize = 2;
/// Rows of the weight of a block.
const ROWS: usize = 4;

/// Elements of a weight below which, and rows from which, this kernel is quicker than that of `skinny` where both are there: there
/// is little to ask for before the kernel before has ended, or so much that it makes no difference.
const SMALL: usize = 5 << 20;
const MANY: usize = 16384;

/// Whether the kernel takes these.
pub(super) fn serves(x: &Tensor, w: &Tensor) -> bool {
    let best = w.rows() * w.cols() < SMALL || w.rows() >= MANY || !skinny::serves(x, w);
    product::serves(x, w, TOKENS) && best
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
