//! Launches of `few.cu`: products that are bound by reading their weight.

use super::Fused;
use crate::{
    cuda::{Launch, Mat, Module, check, gpu_of, launch, module},
    glu::Activation,
};
use keyfold_core::DType;
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("linear_few");

/// Tokens at most; from three on arithmetic takes longer than memory.
const TOKENS: usize = 2;
/// Rows of the weight of a block.
const ROWS: usize = 4;

/// `Product` of few.cu.
#[repr(C)]
struct Product {
    x: Mat,
    w: u64,
    out: u64,
    out_stride: i64,
    bias: u64,
    gain: u64,
    eps: f32,
    tokens: i32,
    inputs: i32,
    out_width: i32,
    accumulate: i32,
    out_f32: i32,
    activation: i32,
}

/// Whether the kernel takes these.
pub(super) fn serves(x: &Tensor, w: &Tensor) -> bool {
    let aligned = x.address().is_multiple_of(16) && w.address().is_multiple_of(16);
    let eights = w.cols().is_multiple_of(8) && (x.rows() == 1 || x.stride().is_multiple_of(8));
    let bf16 = x.dtype() == DType::Bf16 && w.dtype() == DType::Bf16;
    (1..=TOKENS).contains(&x.rows()) && w.cols() > 0 && bf16 && aligned && eights
}

/// See [`super::forward_fused`]; `x` and `w` are such that the kernel [`serves`] them.
pub(super) fn run(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, fused: Fused<'_>, out: &Tensor) {
    let gpu = gpu_of(out);
    check("linear", gpu, DType::Bf16, &[("x", x), ("w", w)]);
    if let Some(bias) = bias {
        check("linear", gpu, DType::F32, &[("bias", bias)]);
    }
    if let Some((gain, _)) = fused.norm {
        check("linear", gpu, DType::F32, &[("gain", gain)]);
    }
    if out.is_empty() {
        return;
    }
    let tokens = x.rows();
    let product = Product {
        x: Mat::of(x),
        w: w.address(),
        out: out.address(),
        out_stride: out.stride() as i64,
        bias: bias.map_or(0, Tensor::address),
        gain: fused.norm.map_or(0, |(gain, _)| gain.address()),
        eps: fused.norm.map_or(0.0, |(_, eps)| eps),
        tokens: tokens as i32,
        inputs: w.cols() as i32,
        out_width: out.cols() as i32,
        accumulate: i32::from(fused.accumulate),
        out_f32: i32::from(out.dtype() == DType::F32),
        activation: match fused.gate {
            None => -1,
            Some(Activation::Silu) => 0,
            Some(Activation::GeluTanh) => 1,
        },
    };
    let name = if tokens == 1 { "few_rows_1" } else { "few_rows_2" };
    let of_a_block = if fused.gate.is_some() { ROWS / 2 } else { ROWS };
    launch!(gpu, KERNELS, name, Launch::blocks(out.cols().div_ceil(of_a_block), 128).early(); product);
}
