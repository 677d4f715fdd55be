//! Launches of `kernel.cu`.

use crate::cuda::{Forms, Launch, Mat, Module, check, forms, gpu_of, launch, module, scratch};
use keyfold_core::DType;
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("rms_norm");

/// Groups that get a block each; more keep the GPU busy with a warp each.
const FEW_GROUPS: usize = 1024;
/// Warps of a block of the backward pass, each with a row of sums in shared memory.
const WARPS: usize = 4;

/// `Sizes` of the kernels.
#[repr(C)]
struct Sizes {
    tokens: i32,
    groups: i32,
    width: i32,
}

impl Sizes {
    fn of(x: &Tensor, weight: &Tensor) -> Self {
        let width = weight.cols();
        Self { tokens: x.rows() as i32, groups: (x.cols() / width) as i32, width: width as i32 }
    }

    /// Groups that are normalised.
    fn count(&self) -> usize {
        self.tokens as usize * self.groups as usize
    }
}

pub(super) fn forward(
    x: &Tensor,
    residual: Option<(&Tensor, &mut Tensor)>,
    weight: &Tensor,
    eps: f32,
    out: &Tensor,
    rstd: &Tensor,
) {
    let (gpu, dtype) = (gpu_of(x), x.dtype());
    check("rms_norm", gpu, dtype, &[("out", out)]);
    check("rms_norm", gpu, DType::F32, &[("weight", weight), ("rstd", rstd)]);
    if x.is_empty() {
        return;
    }
    let sizes = Sizes::of(x, weight);
    let mut tensors = vec![x, out];
    let (mut residual_mat, mut sum_mat) = (Mat::NONE, Mat::NONE);
    if let Some((residual, sum)) = &residual {
        check("rms_norm", gpu, dtype, &[("residual", residual), ("sum_out", sum)]);
        (residual_mat, sum_mat) = (Mat::of(residual), Mat::of(sum));
        tensors.extend([*residual, &**sum]);
    }
    let form = Forms::of(dtype, &[weight.cols()], &tensors);
    let threads = weight.cols().div_ceil(8).next_multiple_of(32).min(1024);
    let blocks = form.lanes() == 8 && sizes.count() <= FEW_GROUPS && weight.address().is_multiple_of(16);
    let (name, grid) = if blocks && (512..=16 * threads).contains(&weight.cols()) {
        ("forward_rows", Launch::blocks(sizes.count(), threads as u32))
    } else {
        (form.choose(forms!("forward")), Launch::blocks(sizes.count().div_ceil(8), 256))
    };
    launch!(gpu, KERNELS, name, grid.early();
        Mat::of(x), residual_mat, sum_mat, weight.address(), eps, Mat::of(out), Mat::of(rstd), sizes);
}

pub(super) fn backward(
    d_out: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
    d_x: &Tensor,
    accumulate: bool,
    d_weight: &Tensor,
) {
    let (gpu, dtype) = (gpu_of(x), x.dtype());
    check("rms_norm::backward", gpu, dtype, &[("d_out", d_out), ("d_x", d_x)]);
    check(
        "rms_norm::backward",
        gpu,
        DType::F32,
        &[("weight", weight), ("rstd", rstd), ("d_weight", d_weight)],
    );
    if x.is_empty() {
        return;
    }
    let sizes = Sizes::of(x, weight);
    let width = weight.cols();
    let form = Forms::of(dtype, &[width], &[d_out, x, d_x]);
    let blocks = sizes.count().div_ceil(WARPS).min(8 * gpu.multiprocessors());
    let partial = scratch(gpu, blocks, width);
    let grid = Launch::blocks(blocks, 32 * WARPS as u32).shared(4 * WARPS * width);
    let aligned = form.lanes() == 8 && weight.address().is_multiple_of(16);
    let name = match width {
        256 if aligned => "backward_rows_1",
        512 if aligned => "backward_rows_2",
        768 if aligned => "backward_rows_3",
        1024 if aligned => "backward_rows_4",
        _ => form.choose(forms!("backward")),
    };
    launch!(gpu, KERNELS, name, grid;
        Mat::of(d_out), Mat::of(x), weight.address(), Mat::of(rstd), Mat::of(d_x), i32::from(accumulate),
        partial.address(), sizes);
    let grid = Launch {
        grid: [width.div_ceil(32) as u32, 1, 1],
        block: [32, 32, 1],
        shared: 0,
        early: false,
        cluster: 1,
    };
    launch!(gpu, KERNELS, "finish_weight", grid;
        partial.address(), blocks as i32, d_weight.address(), width as i32);
}
