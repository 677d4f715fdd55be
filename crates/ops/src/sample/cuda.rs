//! Launches of `kernel.cu`.

use crate::{
    cuda::{Launch, Mat, Module, check, gpu_of, launch, module},
    indices::Indices,
};
use keyfold_core::DType;
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("sample");

pub(super) fn greedy(logits: &Tensor, tokens: &Indices) {
    let gpu = gpu_of(logits);
    check("sample", gpu, DType::F32, &[("logits", logits)]);
    if logits.rows() > 0 {
        launch!(gpu, KERNELS, "greedy", Launch::blocks(logits.rows(), 1024);
            Mat::of(logits), tokens.on(gpu), logits.cols() as i32);
    }
}
