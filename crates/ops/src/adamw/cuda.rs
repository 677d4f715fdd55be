//! Launches of `kernel.cu`.

use super::{Clip, Hyper, Norm};
use crate::cuda::{Launch, Module, check, gpu_of, launch, module, scratch};
use keyfold_core::DType;
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("adamw");

/// `Hyper` of the kernels.
#[repr(C)]
struct KernelHyper {
    decay: f32,
    rate: f32,
    beta1_rest: f32,
    beta2: f32,
    root: f32,
    eps: f32,
    grad_scale: f32,
    max_norm: f32,
}

/// Whether all may be read 16 bytes at a time.
fn wide(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| tensor.address().is_multiple_of(16) && tensor.len().is_multiple_of(4))
}

pub(super) fn step(
    [param, grad, m, v]: [&Tensor; 4],
    copy: Option<&Tensor>,
    hyper: &Hyper,
    clip: Option<Clip<'_>>,
) {
    let gpu = gpu_of(param);
    check("adamw", gpu, DType::F32, &[("param", param), ("grad", grad), ("m", m), ("v", v)]);
    if let Some(copy) = copy {
        check("adamw", gpu, DType::Bf16, &[("copy", copy)]);
    }
    if param.is_empty() {
        return;
    }
    let (norm, max_norm, grad_scale) = match clip {
        None => (0, 0.0, hyper.grad_scale),
        Some(Clip { norm: Norm::Device(squares), max }) => (squares.address(), max as f32, hyper.grad_scale),
        Some(clip) => match clip.factor() {
            Some(factor) => (0, 0.0, hyper.grad_scale * factor),
            None => return,
        },
    };
    let steps = hyper.step as f64;
    let kernel_hyper = KernelHyper {
        decay: (1.0 - hyper.lr * hyper.weight_decay) as f32,
        rate: (hyper.lr / (1.0 - hyper.beta1.powf(steps))) as f32,
        beta1_rest: (1.0 - hyper.beta1) as f32,
        beta2: hyper.beta2 as f32,
        root: (1.0 / (1.0 - hyper.beta2.powf(steps)).sqrt()) as f32,
        eps: hyper.eps as f32,
        grad_scale: grad_scale as f32,
        max_norm,
    };
    // Four elements of the copy are 8 bytes.
    let wide = wide(&[param, grad, m, v]) && copy.is_none_or(|copy| copy.address().is_multiple_of(8));
    let (name, lanes) = if wide { ("step_wide", 4) } else { ("step", 1) };
    let blocks = param.len().div_ceil(256 * lanes).min(16 * gpu.multiprocessors());
    launch!(gpu, KERNELS, name, Launch::blocks(blocks, 256);
        param.address(), grad.address(), m.address(), v.address(), copy.map_or(0, Tensor::address),
        param.len() as i64, kernel_hyper, norm);
}

/// The sum of squares of all, as an f64 in the memory of the GPU.
pub(super) fn squares(grads: &[&Tensor]) -> Tensor {
    let gpu = gpu_of(grads[0]);
    let blocks = 4 * gpu.multiprocessors();
    let partial = scratch(gpu, grads.len(), 2 * blocks);
    for (index, grad) in grads.iter().enumerate() {
        check("adamw::norm", gpu, DType::F32, &[("grad", grad)]);
        let name = if wide(&[grad]) { "squares_wide" } else { "squares" };
        launch!(gpu, KERNELS, name, Launch::blocks(blocks, 256);
            grad.address(), grad.len() as i64, partial.address() + (8 * index * blocks) as u64);
    }
    let sum = scratch(gpu, 1, 2);
    launch!(gpu, KERNELS, "total", Launch::blocks(1, 1024);
        partial.address(), (grads.len() * blocks) as i32, sum.address());
    sum
}
