//! Products of cuBLASLt, but those of few rows; biases by `kernel.cu`.

use super::{Fused, product::of_few_rows};
use crate::attention::Heads;
use crate::cuda::{
    Launch, Mat, Module, check,
    gemm::{Batch, Operand, gemm, gemm_batched},
    gpu_of, launch, module, scratch,
};
use keyfold_core::DType;
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("linear");

/// Blocks that share the rows of a sum.
const PARTS: usize = 64;

pub(super) fn forward(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, out: &Tensor, accumulate: bool) {
    if of_few_rows(x, w, bias, Fused { accumulate, ..Fused::default() }, out) {
        return;
    }
    if let Some(bias) = bias {
        add_bias(bias, out, accumulate);
    }
    gemm(out, accumulate || bias.is_some(), 1.0, Operand::of(x), Operand::of(w).t());
}

pub(super) fn forward_heads(x: Heads<'_>, w: &Tensor, out: Heads<'_>) {
    let first = |heads: Heads<'_>| heads.tensor.columns(0, heads.width);
    let batch = Batch { count: x.count, steps: [out.stride, x.stride, out.width * w.cols()] };
    let weight = w.row_range(0, out.width);
    gemm_batched(&first(out), false, 1.0, Operand::of(&first(x)), Operand::of(&weight).t(), batch);
}

pub(super) fn backward_input(dy: &Tensor, w: &Tensor, dx: &Tensor, accumulate: bool) {
    gemm(dx, accumulate, 1.0, Operand::of(dy), Operand::of(w));
}

pub(super) fn backward_weight(dy: &Tensor, x: &Tensor, dw: &Tensor, accumulate: bool) {
    gemm(dw, accumulate, 1.0, Operand::of(dy).t(), Operand::of(x));
}

fn add_bias(bias: &Tensor, out: &Tensor, accumulate: bool) {
    let gpu = gpu_of(out);
    check("linear", gpu, DType::F32, &[("bias", bias)]);
    let (rows, cols) = (out.rows(), out.cols());
    if out.is_empty() {
        return;
    }
    let name = if out.dtype() == DType::F32 { "add_bias_f32" } else { "add_bias_bf16" };
    launch!(gpu, KERNELS, name, Launch::rows(rows, cols, 1);
        bias.address(), Mat::of(out), i32::from(accumulate), rows as i32, cols as i32);
}

pub(super) fn backward_bias(dy: &Tensor, d_bias: &Tensor, accumulate: bool) {
    let gpu = gpu_of(dy);
    check("linear::backward_bias", gpu, DType::F32, &[("d_bias", d_bias)]);
    let (rows, cols) = (dy.rows(), dy.cols());
    if cols == 0 {
        return;
    }
    let parts = PARTS.min(rows.div_ceil(8)).max(1);
    let partial = scratch(gpu, parts, cols);
    let name = if dy.dtype() == DType::F32 { "sum_rows_f32" } else { "sum_rows_bf16" };
    let grid = Launch {
        grid: [cols.div_ceil(32) as u32, parts as u32, 1],
        block: [32, 8, 1],
        shared: 0,
        early: false,
        cluster: 1,
    };
    launch!(gpu, KERNELS, name, grid; Mat::of(dy), partial.address(), rows as i32, cols as i32);
    launch!(gpu, KERNELS, "finish_sums", Launch::blocks(cols.div_ceil(128), 128);
        partial.address(), parts as i32, d_bias.address(), i32::from(accumulate), cols as i32);
}
