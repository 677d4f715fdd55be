//! Launches of `kernel.cu`.

use super::GateGradient;
use crate::cuda::{Forms, Launch, Mat, Module, check, forms, gpu_of, launch, module, scratch};
use keyfold_core::DType;
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("value_map");

/// Blocks that share the rows of a sum.
const PARTS: usize = 64;

pub(super) fn forward(k: &Tensor, n: &Tensor, alpha: Option<&Tensor>, out: &Tensor) {
    let (gpu, dtype) = (gpu_of(out), out.dtype());
    check("value_map", gpu, dtype, &[("k", k), ("n", n)]);
    if let Some(alpha) = alpha {
        check("value_map", gpu, DType::F32, &[("alpha", alpha)]);
    }
    if out.is_empty() {
        return;
    }
    let (tokens, width) = (out.rows(), out.cols());
    let form = Forms::of(dtype, &[width], &[k, n, out]);
    launch!(gpu, KERNELS, form.choose(forms!("forward")), Launch::rows(tokens, width, form.lanes());
        Mat::of(k), Mat::of(n), alpha.map_or(0, Tensor::address), Mat::of(out), tokens as i32, width as i32);
}

pub(super) fn backward(
    d_out: &Tensor,
    gate: Option<GateGradient<'_>>,
    d_k: &Tensor,
    accumulate: bool,
    d_n: &Tensor,
) {
    let (gpu, dtype) = (gpu_of(d_out), d_out.dtype());
    check("value_map::backward", gpu, dtype, &[("d_k", d_k), ("d_n", d_n)]);
    if d_out.is_empty() {
        return;
    }
    let (tokens, width) = (d_out.rows(), d_out.cols());
    let parts = PARTS.min(tokens.div_ceil(8));
    let grid = Launch {
        grid: [width.div_ceil(32) as u32, parts as u32, 1],
        block: [32, 8, 1],
        shared: 0,
        early: false,
        cluster: 1,
    };
    let name = if dtype == DType::F32 { "backward_f32" } else { "backward_bf16" };
    let partial = scratch(gpu, parts, width);
    let (n, alpha) = match &gate {
        None => (Mat::NONE, 0),
        Some(gate) => {
            check("value_map::backward", gpu, dtype, &[("n", gate.n)]);
            let vectors = [("alpha", gate.alpha), ("d_alpha", &*gate.d_alpha)];
            check("value_map::backward", gpu, DType::F32, &vectors);
            (Mat::of(gate.n), gate.alpha.address())
        }
    };
    launch!(gpu, KERNELS, name, grid;
        Mat::of(d_out), n, alpha, Mat::of(d_k), i32::from(accumulate), Mat::of(d_n), partial.address(),
        tokens as i32, width as i32);
    if let Some(gate) = gate {
        launch!(gpu, KERNELS, "finish_alpha", Launch::blocks(width.div_ceil(128), 128);
            partial.address(), parts as i32, gate.d_alpha.address(), width as i32);
    }
}
