//! Launches of `kernel.cu`.

use super::{Heads, Pairing, Positions, RopeTable};
use crate::cuda::{Forms, Launch, Mat, Module, check, forms, gpu_of, launch, module};
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("rope");

/// `Heads` of the kernels.
#[repr(C)]
struct KernelHeads {
    count: i32,
    stride: i32,
    offset: i32,
    width: i32,
}

/// `Positions` of the kernels.
#[repr(C)]
struct KernelPositions {
    at: u64,
    seq: i32,
    past: i32,
}

pub(super) fn apply(
    x: &Tensor,
    out: &Tensor,
    heads: Heads,
    table: &RopeTable,
    positions: Positions<'_>,
    inverse: bool,
) {
    let (gpu, dtype) = (gpu_of(x), x.dtype());
    check("rope", gpu, dtype, &[("out", out)]);
    let (tokens, width) = (x.rows(), table.width());
    if tokens == 0 || heads.count == 0 || width == 0 {
        return;
    }
    let angles = table.on(gpu);
    let half = (table.positions() * width / 2 * 4) as u64;
    let (cos, sin) = (angles.address(), angles.address() + half);
    let positions = match positions {
        Positions::Rows { seq } => KernelPositions { at: 0, seq: seq as i32, past: 0 },
        Positions::From(past) => KernelPositions { at: 0, seq: 0, past: past as i32 },
        Positions::Of(positions) => KernelPositions { at: positions.on(gpu), seq: 0, past: 0 },
    };
    let halves = table.pairing() == Pairing::HalfSplit;
    let form = match halves {
        true => Forms::of(dtype, &[width / 2, heads.stride, heads.offset], &[x, out]),
        // One pair at a time.
        false => Forms::of(dtype, &[1], &[x, out]),
    };
    let name = if halves { form.choose(forms!("halves")) } else { form.choose(forms!("pairs")) };
    let kernel_heads = KernelHeads {
        count: heads.count as i32,
        stride: heads.stride as i32,
        offset: heads.offset as i32,
        width: width as i32,
    };
    let sign = if inverse { -1f32 } else { 1.0 };
    let work = heads.count * (width / 2).div_ceil(form.lanes());
    launch!(gpu, KERNELS, name, Launch::rows(tokens, work, 1).early();
        Mat::of(x), Mat::of(out), kernel_heads, cos, sin, positions, sign, tokens as i32);
}
