//! Launches of `kernel.cu`.

use super::Activation;
use crate::cuda::{Forms, Launch, Mat, Module, check, forms, gpu_of, launch, module};
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("glu");

/// `Activation` of the kernels.
fn code(activation: Activation) -> i32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
    }
}

pub(super) fn forward(activation: Activation, gate_up: &Tensor, out: &Tensor) {
    let (gpu, dtype) = (gpu_of(out), out.dtype());
    check("glu", gpu, dtype, &[("gate_up", gate_up)]);
    if out.is_empty() {
        return;
    }
    let (tokens, width) = (out.rows(), out.cols());
    let form = Forms::of(dtype, &[width], &[gate_up, out]);
    launch!(gpu, KERNELS, form.choose(forms!("forward")), Launch::spread(tokens, width, form.lanes()).early();
        code(activation), Mat::of(gate_up), Mat::of(out), tokens as i32, width as i32);
}

pub(super) fn backward(activation: Activation, gate_up: &Tensor, d_out: &Tensor, d_gate_up: &Tensor) {
    let (gpu, dtype) = (gpu_of(d_out), d_out.dtype());
    check("glu::backward", gpu, dtype, &[("gate_up", gate_up), ("d_gate_up", d_gate_up)]);
    if d_out.is_empty() {
        return;
    }
    let (tokens, width) = (d_out.rows(), d_out.cols());
    let form = Forms::of(dtype, &[width], &[gate_up, d_out, d_gate_up]);
    launch!(gpu, KERNELS, form.choose(forms!("backward")), Launch::rows(tokens, width, form.lanes());
        code(activation), Mat::of(gate_up), Mat::of(d_out), Mat::of(d_gate_up), tokens as i32, width as i32);
}
