//! Routing on the host, which must know the experts' tokens to ask for their products; sums by `kernel.cu`.

use super::{Assigned, Router, cpu};
use crate::cuda::{Forms, Launch, Mat, Module, check, forms, gpu_of, launch, module, uploaded_u32};
use keyfold_core::DType;
use keyfold_tensor::{Arena, Tensor};

static KERNELS: Module = module!("moe");

/// A copy of `tensor` for the host's path, in f32.
fn on_host(tensor: &Tensor) -> Tensor {
    Arena::new().tensor_of(tensor.rows(), tensor.cols(), &tensor.to_vec())
}

pub(super) fn route(
    router: &Router,
    logits: &Tensor,
    bias: Option<&Tensor>,
    chosen: &mut [u32],
    weights: &mut Tensor,
) {
    let (host, bias) = (on_host(logits), bias.map(on_host));
    let mut out = Arena::new().tensor(weights.rows(), weights.cols(), DType::F32);
    cpu::route(router, &host, bias.as_ref(), chosen, &mut out);
    weights.write(&out.to_vec());
}

pub(super) fn route_backward(
    router: &Router,
    logits: &Tensor,
    chosen: &[u32],
    d_weights: &Tensor,
    d_logits: &mut Tensor,
) {
    let mut out = Arena::new().tensor(d_logits.rows(), d_logits.cols(), DType::F32);
    cpu::route_backward(router, &on_host(logits), chosen, &on_host(d_weights), &mut out);
    d_logits.write(&out.to_vec());
}

pub(super) fn scatter(assigned: &Assigned, y: &Tensor, weights: &Tensor, out: &Tensor) {
    let (gpu, dtype) = (gpu_of(y), y.dtype());
    check("moe::scatter", gpu, dtype, &[("weights", weights), ("out", out)]);
    if y.is_empty() {
        return;
    }
    let (rows, hidden) = (y.rows(), y.cols());
    let (tokens, slots) = (uploaded_u32(gpu, &assigned.tokens), uploaded_u32(gpu, &assigned.slots));
    let form = Forms::of(dtype, &[hidden], &[y, out]);
    launch!(gpu, KERNELS, form.choose(forms!("scatter")), Launch::rows(rows, hidden, form.lanes());
        tokens.address(), slots.address(), Mat::of(y), Mat::of(weights), Mat::of(out), rows as i32, hidden as i32);
}

pub(super) fn scatter_backward(
    assigned: &Assigned,
    y: &Tensor,
    weights: &Tensor,
    d_out: &Tensor,
    dy: &Tensor,
    d_weights: &Tensor,
) {
    let (gpu, dtype) = (gpu_of(y), y.dtype());
    let tensors = [("weights", weights), ("d_out", d_out), ("dy", dy), ("d_weights", d_weights)];
    check("moe::scatter_backward", gpu, dtype, &tensors);
    if y.is_empty() {
        return;
    }
    let (rows, hidden) = (y.rows(), y.cols());
    let (tokens, slots) = (uploaded_u32(gpu, &assigned.tokens), uploaded_u32(gpu, &assigned.slots));
    let form = Forms::of(dtype, &[hidden], &[y, d_out, dy]);
    launch!(gpu, KERNELS, form.choose(forms!("backward")), Launch::blocks(rows.div_ceil(8), 256);
        tokens.address(), slots.address(), Mat::of(y), Mat::of(weights), Mat::of(d_out), Mat::of(dy),
        Mat::of(d_weights), rows as i32, hidden as i32);
}
