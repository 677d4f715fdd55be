//! Launches of `kernel.cu`.

use super::Rows;
use crate::{
    cuda::{Launch, Mat, Module, gpu_of, launch, module},
    indices::Indices,
};
use keyfold_core::{DType, SCALE_BLOCK};
use keyfold_tensor::{Tensor, cuda::Gpu};

static KERNELS: Module = module!("fp8");

/// `Places` of the kernel.
#[repr(C)]
struct Places {
    values: Mat,
    scales: u64,
    at: u64,
    count: i64,
    rows: i32,
    cols: i32,
    sharing: i32,
}

impl Places {
    fn new(gpu: &Gpu, rows: Rows<'_>, at: &Indices, block: usize, sharing: usize) -> Self {
        Self {
            values: Mat::of(rows.values),
            scales: rows.scales_from(block),
            at: at.on(gpu),
            count: rows.values.rows() as i64,
            rows: at.len() as i32,
            cols: rows.values.cols() as i32,
            sharing: sharing as i32,
        }
    }

    /// Eight threads for a block of columns.
    fn grid(&self) -> Launch {
        Launch::rows(self.rows as usize, (self.cols as usize).next_multiple_of(SCALE_BLOCK), 8).early()
    }
}

pub(super) fn store(x: &Tensor, at: &Indices, out: Rows<'_>, block: usize, sharing: usize) {
    let gpu = gpu_of(x);
    if !x.is_empty() {
        let places = Places::new(gpu, out, at, block, sharing);
        let name = if x.dtype() == DType::F32 { "fp8_store_f32" } else { "fp8_store_bf16" };
        launch!(gpu, KERNELS, name, places.grid(); Mat::of(x), places);
    }
}

pub(super) fn load(rows: Rows<'_>, at: &Indices, out: &Tensor, block: usize) {
    let gpu = gpu_of(out);
    if !out.is_empty() {
        let places = Places::new(gpu, rows, at, block, SCALE_BLOCK);
        let name = if out.dtype() == DType::F32 { "fp8_load_f32" } else { "fp8_load_bf16" };
        launch!(gpu, KERNELS, name, places.grid(); places, Mat::of(out));
    }
}
