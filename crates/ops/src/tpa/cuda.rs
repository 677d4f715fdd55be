//! Launches of `kernel.cu`.

use crate::cuda::{Launch, Mat, Module, check, gpu_of, launch, module};
use keyfold_core::DType;
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("tpa");

/// `Sizes` of the kernels.
#[repr(C)]
struct Sizes {
    rank: i32,
    heads: i32,
    width: i32,
}

impl Sizes {
    fn of(a: &Tensor, heads: usize, out: &Tensor) -> Self {
        Self { rank: (a.cols() / heads) as i32, heads: heads as i32, width: (out.cols() / heads) as i32 }
    }
}

pub(super) fn combine(a: &Tensor, b: &Tensor, heads: usize, out: &Tensor) {
    let (gpu, dtype) = (gpu_of(out), out.dtype());
    check("tpa", gpu, dtype, &[("a", a), ("b", b)]);
    if out.is_empty() {
        return;
    }
    let name = if dtype == DType::F32 { "combine_f32" } else { "combine_bf16" };
    launch!(gpu, KERNELS, name, Launch::blocks(out.rows(), 128);
        Mat::of(a), Mat::of(b), Mat::of(out), Sizes::of(a, heads, out));
}

pub(super) fn backward(
    d_out: &Tensor,
    a: &Tensor,
    b: &Tensor,
    heads: usize,
    d_a: &Tensor,
    d_b: &Tensor,
    accumulate: bool,
) {
    let (gpu, dtype) = (gpu_of(d_out), d_out.dtype());
    check("tpa::backward", gpu, dtype, &[("a", a), ("b", b), ("d_a", d_a), ("d_b", d_b)]);
    if d_out.is_empty() {
        return;
    }
    let name = if dtype == DType::F32 { "backward_f32" } else { "backward_bf16" };
    launch!(gpu, KERNELS, name, Launch::blocks(d_out.rows(), 128).shared(4 * d_out.cols());
        Mat::of(d_out), Mat::of(a), Mat::of(b), Mat::of(d_a), Mat::of(d_b), i32::from(accumulate),
        Sizes::of(a, heads, d_out));
}
