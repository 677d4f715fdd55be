//! What the CUDA paths of the ops share: kernels, launches, uploads of small arrays.
//!
//! Each op's `cuda.rs` holds `static KERNELS: Module = module!("name");` for the fat binary that `build.rs` made of the
//! `kernel.cu` beside it, and launches functions of it with [`launch!`](crate::cuda::launch).

mod boxes;
pub(crate) mod gemm;
mod launch;
mod module;
mod uploads;

pub(crate) use boxes::{Boxes, boxes};
pub(crate) use launch::{Forms, Launch, Mat, clusters_at_once, conversion, forms, launch, start};
pub(crate) use module::{Function, Module, module};
pub(crate) use uploads::{arena, scratch, uploaded_f32, uploaded_u32};

use keyfold_core::DType;
use keyfold_tensor::{Device, DeviceError, Tensor, cuda::Gpu};

/// The GPU that holds `tensor`.
///
/// # Panics
/// When it lies in the host's memory: dispatch is by device.
#[track_caller]
pub(crate) fn gpu_of(tensor: &Tensor) -> &'static Gpu {
    match tensor.device() {
        Device::Cuda(index) => {
            let gpu = keyfold_tensor::cuda::gpu(index).unwrap_or_else(|error| error.raise());
            gpu.bind();
            gpu
        }
        Device::Cpu => panic!("a tensor in the memory of the host among those of a GPU"),
    }
}

/// Ends the op with an error: there is no kernel for what it was given.
pub(crate) fn unsupported(gpu: &Gpu, op: impl Into<String>) -> ! {
    DeviceError::Unsupported { device: gpu.device(), op: op.into() }.raise()
}

/// Panics unless all tensors lie on `gpu` and have the element type `dtype`.
#[track_caller]
pub(crate) fn check(op: &str, gpu: &Gpu, dtype: DType, tensors: &[(&str, &Tensor)]) {
    for (name, tensor) in tensors {
        assert_eq!(tensor.device(), gpu.device(), "{op}: device of {name}");
        assert_eq!(tensor.dtype(), dtype, "{op}: element type of {name}");
    }
}
