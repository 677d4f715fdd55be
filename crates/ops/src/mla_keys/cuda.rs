//! Launches of `kernel.cu`.

use crate::cuda::{Launch, Mat, Module, check, gpu_of, launch, module};
use keyfold_core::DType;
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("mla_keys");

pub(super) fn forward(nope: &Tensor, stride: usize, k_pe: &Tensor, heads: usize, out: &Tensor) {
    let (gpu, dtype) = (gpu_of(out), out.dtype());
    check("mla_keys", gpu, dtype, &[("nope", nope), ("k_pe", k_pe)]);
    if out.is_empty() {
        return;
    }
    let name = if dtype == DType::F32 { "forward_f32" } else { "forward_bf16" };
    let own = out.cols() / heads - k_pe.cols();
    launch!(gpu, KERNELS, name, Launch::rows(out.rows(), out.cols(), 1);
        Mat::of(nope), stride as i32, Mat::of(k_pe), Mat::of(out), out.rows() as i32, heads as i32, own as i32,
        k_pe.cols() as i32);
}

pub(super) fn backward(
    d_out: &Tensor,
    heads: usize,
    d_nope: &Tensor,
    stride: usize,
    d_pe: &Tensor,
    accumulate: bool,
) {
    let (gpu, dtype) = (gpu_of(d_out), d_out.dtype());
    check("mla_keys::backward", gpu, dtype, &[("d_nope", d_nope), ("d_pe", d_pe)]);
    if d_out.is_empty() {
        return;
    }
    let name = if dtype == DType::F32 { "backward_f32" } else { "backward_bf16" };
    let own = d_out.cols() / heads - d_pe.cols();
    launch!(gpu, KERNELS, name, Launch::rows(d_out.rows(), heads * own + d_pe.cols(), 1);
        Mat::of(d_out), Mat::of(d_nope), stride as i32, Mat::of(d_pe), i32::from(accumulate), d_out.rows() as i32,
        heads as i32, own as i32, d_pe.cols() as i32);
}
