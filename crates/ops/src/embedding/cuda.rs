//! Launches of `kernel.cu`.

use crate::cuda::{Forms, Launch, Mat, Module, check, gpu_of, launch, module, uploaded_u32};
use crate::indices::Indices;
use keyfold_core::DType;
use keyfold_tensor::{Tensor, cuda::Gpu};

static KERNELS: Module = module!("embedding");

/// The kernel from one matrix to another, and its elements per access.
fn form(from: &Tensor, to: &Tensor, names: [[&'static str; 2]; 4]) -> (&'static str, usize) {
    let wide = Forms::of(DType::Bf16, &[from.cols()], &[from, to]).lanes() > 1;
    let types = match (from.dtype(), to.dtype()) {
        (DType::F32, DType::F32) => 0,
        (DType::F32, DType::Bf16) => 1,
        (DType::Bf16, DType::F32) => 2,
        (DType::Bf16, DType::Bf16) => 3,
        (DType::Fp8, _) | (_, DType::Fp8) => DType::Fp8.unsupported("embedding"),
    };
    (names[types][usize::from(wide)], if wide { 8 } else { 1 })
}

pub(super) fn forward(ids: &[u32], table: &Tensor, out: &Tensor) {
    if !out.is_empty() {
        let gpu = gpu_of(out);
        let ids = uploaded_u32(gpu, ids);
        look_up(gpu, ids.address(), table, out);
    }
}

pub(super) fn gather(ids: &Indices, table: &Tensor, out: &Tensor) {
    if !out.is_empty() {
        let gpu = gpu_of(out);
        look_up(gpu, ids.on(gpu), table, out);
    }
}

fn look_up(gpu: &Gpu, ids: u64, table: &Tensor, out: &Tensor) {
    check("embedding", gpu, table.dtype(), &[("table", table)]);
    let (name, lanes) = form(
        table,
        out,
        [
            ["forward_f32_f32", "forward_f32_f32_wide"],
            ["forward_f32_bf16", "forward_f32_bf16_wide"],
            ["forward_bf16_f32", "forward_bf16_f32_wide"],
            ["forward_bf16_bf16", "forward_bf16_bf16_wide"],
        ],
    );
    let (tokens, width) = (out.rows(), out.cols());
    launch!(gpu, KERNELS, name, Launch::rows(tokens, width, lanes).early();
        ids, Mat::of(table), Mat::of(out), tokens as i32, width as i32);
}

pub(super) fn backward(ids: &[u32], d_out: &Tensor, d_table: &Tensor) {
    let gpu = gpu_of(d_out);
    check("embedding::backward", gpu, d_table.dtype(), &[("d_table", d_table)]);
    if d_out.is_empty() {
        return;
    }
    let (name, lanes) = form(
        d_out,
        d_table,
        [
            ["backward_f32_f32", "backward_f32_f32_wide"],
            ["backward_f32_bf16", "backward_f32_bf16_wide"],
            ["backward_bf16_f32", "backward_bf16_f32_wide"],
            ["backward_bf16_bf16", "backward_bf16_bf16_wide"],
        ],
    );
    let sorted = Sorted::of(ids);
    let rows = sorted.ids.len();
    let packed = uploaded_u32(gpu, &[sorted.ids, sorted.starts, sorted.order].concat());
    let (at, width) = (packed.address(), d_out.cols());
    let threads = width.div_ceil(lanes).next_multiple_of(32).min(256) as u32;
    launch!(gpu, KERNELS, name, Launch::blocks(rows, threads);
        at, at + 4 * rows as u64, at + 4 * (2 * rows + 1) as u64, Mat::of(d_out), Mat::of(d_table), width as i32);
}

/// Tokens by id.
struct Sorted {
    /// Every id that occurs.
    ids: Vec<u32>,
    /// Where the tokens of each begin in `order`, and the end of the last.
    starts: Vec<u32>,
    order: Vec<u32>,
}

impl Sorted {
    fn of(ids: &[u32]) -> Self {
        let mut keys: Vec<u64> =
            ids.iter().zip(0u64..).map(|(id, token)| u64::from(*id) << 32 | token).collect();
        keys.sort_unstable();
        let mut sorted = Self { ids: Vec::new(), starts: Vec::new(), order: Vec::with_capacity(keys.len()) };
        for (at, key) in keys.iter().enumerate() {
            let id = (key >> 32) as u32;
            if sorted.ids.last() != Some(&id) {
                sorted.ids.push(id);
                sorted.starts.push(at as u32);
            }
            sorted.order.push(*key as u32);
        }
        sorted.starts.push(keys.len() as u32);
        sorted
    }
}
