//! Products of cuBLASLt in bf16; the elementwise passes by `kernel.cu`.

use super::{COEFFICIENTS, Hyper, NORM_EPS, STEPS};
use crate::{
    adamw, add,
    cuda::{
        Launch, Module, arena, check,
        gemm::{Operand, gemm},
        gpu_of, launch, module, scratch,
    },
};
use keyfold_core::DType;
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("muon");

pub(super) fn step(param: &Tensor, grad: &Tensor, m: &Tensor, hyper: &Hyper) {
    let gpu = gpu_of(param);
    let tensors = [("param", param), ("grad", grad), ("m", m)];
    check("muon", gpu, DType::F32, &tensors);
    for (name, tensor) in tensors {
        assert!(tensor.is_contiguous(), "muon: {name} has gaps between its rows");
    }
    let (rows, cols) = (grad.rows(), grad.cols());
    let count = grad.len() as i64;
    let grid = Launch::blocks(grad.len().div_ceil(256).min(16 * gpu.multiprocessors()), 256);
    let update = scratch(gpu, rows, cols);
    let (grad_scale, gain, momentum) =
        (hyper.grad_scale as f32, (1.0 - hyper.momentum) as f32, hyper.momentum as f32);
    launch!(gpu, KERNELS, "momentum", grid;
        grad.address(), m.address(), update.address(), grad_scale, gain, momentum, count);
    // The Frobenius norm bounds the largest singular value, which must not be above 1 at the start.
    let squares = adamw::Norm::of(&[&update]);
    let adamw::Norm::Device(squares) = &squares else { return };
    let mut current = arena(gpu).tensor(rows, cols, DType::Bf16);
    launch!(gpu, KERNELS, "normalise", grid;
        update.address(), squares.address(), NORM_EPS, current.address(), count);
    drop(update);
    orthogonalise(&mut current);
    let scale = (rows as f64 / cols as f64).max(1.0).sqrt();
    let (keep, rate) = ((1.0 - hyper.lr * hyper.weight_decay) as f32, (hyper.lr * scale) as f32);
    launch!(gpu, KERNELS, "apply", grid; param.address(), current.address(), keep, rate, count);
}

/// The Newton-Schulz iteration, on the smaller side's Gram matrix.
fn orthogonalise(current: &mut Tensor) {
    let [a, b, c] = COEFFICIENTS;
    let (rows, cols) = (current.rows(), current.cols());
    let wide = rows <= cols;
    let side = rows.min(cols);
    let arena = arena(gpu_of(current));
    let [gram, mut polynomial] = [0; 2].map(|_| arena.tensor(side, side, DType::Bf16));
    let mut next = arena.tensor(rows, cols, DType::Bf16);
    for _ in 0..STEPS {
        let x = Operand::of(current);
        let (left, right) = if wide { (x, x.t()) } else { (x.t(), x) };
        gemm(&gram, false, 1.0, left, right);
        add::scale(&gram, b, &mut polynomial, false);
        gemm(&polynomial, true, c, Operand::of(&gram), Operand::of(&gram));
        add::scale(current, a, &mut next, false);
        let polynomial = Operand::of(&polynomial);
        let (left, right) = if wide { (polynomial, x) } else { (x, polynomial) };
        gemm(&next, true, 1.0, left, right);
        std::mem::swap(current, &mut next);
    }
}
