//! Launches of `kernel.cu`.

use crate::cuda::{Forms, Launch, Mat, Module, check, conversion, gpu_of, launch, module};
use keyfold_core::DType;
use keyfold_tensor::{Tensor, cuda::Gpu};

static KERNELS: Module = module!("cast");

pub(super) fn copy(x: &Tensor, out: &Tensor) {
    let gpu = gpu_of(out);
    check("cast::copy", gpu, x.dtype(), &[("x", x)]);
    // A long flat buffer is walked as rows of this length, a short rest after it.
    const FLAT: usize = 1 << 16;
    if out.rows() == 1 && out.cols() > FLAT {
        let rows = out.cols() / FLAT;
        let whole = |tensor: &Tensor| tensor.columns(0, rows * FLAT).reshape(rows, FLAT);
        run(gpu, &whole(x), &whole(out));
        let rest = |tensor: &Tensor| tensor.columns(rows * FLAT, tensor.cols() - rows * FLAT);
        return run(gpu, &rest(x), &rest(out));
    }
    run(gpu, x, out);
}

fn run(gpu: &Gpu, x: &Tensor, out: &Tensor) {
    let (rows, cols) = (out.rows(), out.cols());
    if out.is_empty() {
        return;
    }
    let wide = Forms::of(DType::Bf16, &[cols], &[x, out]).lanes() == 8;
    let name = conversion(x.dtype(), out.dtype(), wide);
    launch!(gpu, KERNELS, name, Launch::rows(rows, cols, if wide { 8 } else { 1 });
        Mat::of(x), Mat::of(out), rows as i32, cols as i32);
}
