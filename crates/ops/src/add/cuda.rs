//! Launches of `kernel.cu`.

use crate::cuda::{Forms, Launch, Mat, Module, check, forms, gpu_of, launch, module};
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("add");

pub(super) fn add(a: &Tensor, b: &Tensor, out: &Tensor) {
    let (gpu, dtype) = (gpu_of(out), out.dtype());
    check("add", gpu, dtype, &[("a", a), ("b", b)]);
    let (rows, cols) = (out.rows(), out.cols());
    if out.is_empty() {
        return;
    }
    let form = Forms::of(dtype, &[cols], &[a, b, out]);
    launch!(gpu, KERNELS, form.choose(forms!("add")), Launch::rows(rows, cols, form.lanes());
        Mat::of(a), Mat::of(b), Mat::of(out), rows as i32, cols as i32);
}

pub(super) fn scale(x: &Tensor, factor: f32, out: &Tensor, accumulate: bool) {
    let (gpu, dtype) = (gpu_of(out), out.dtype());
    check("add::scale", gpu, dtype, &[("x", x)]);
    let (rows, cols) = (out.rows(), out.cols());
    if out.is_empty() {
        return;
    }
    let form = Forms::of(dtype, &[cols], &[x, out]);
    launch!(gpu, KERNELS, form.choose(forms!("scale")), Launch::rows(rows, cols, form.lanes());
        Mat::of(x), factor, Mat::of(out), i32::from(accumulate), rows as i32, cols as i32);
}
