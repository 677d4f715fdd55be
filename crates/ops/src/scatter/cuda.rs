//! Launches of `kernel.cu`.

use crate::{
    cuda::{Forms, Launch, Mat, Module, check, conversion, gpu_of, launch, module},
    indices::Indices,
};
use keyfold_core::DType;
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("scatter");

pub(super) fn rows(x: &Tensor, at: &Indices, out: &Tensor) {
    let gpu = gpu_of(x);
    check("scatter", gpu, out.dtype(), &[("out", out)]);
    if x.is_empty() {
        return;
    }
    let wide = Forms::of(DType::Bf16, &[x.cols()], &[x, out]).lanes() > 1;
    let name = conversion(x.dtype(), out.dtype(), wide);
    launch!(gpu, KERNELS, name, Launch::rows(x.rows(), x.cols(), if wide { 8 } else { 1 }).early();
        Mat::of(x), at.on(gpu), Mat::of(out), x.rows() as i32, x.cols() as i32);
}
