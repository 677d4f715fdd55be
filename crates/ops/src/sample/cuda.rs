//! Launches of `kernel.cu`.

use super::choices::Choices;
use crate::{
    cuda::{Launch, Mat, Module, check, gpu_of, launch, module},
    indices::Indices,
};
use keyfold_core::DType;
use keyfold_tensor::{Mailbox, Tensor, cuda::Gpu};

static KERNELS: Module = module!("sample");

/// The oldest compute capability with clusters.
const CLUSTERS: (i32, i32) = (9, 0);
/// Blocks of a cluster at most.
const MOST_BLOCKS: usize = 8;
/// Shared memory of a block beside its weights: histograms, and what the kernel declares.
const BESIDE: usize = 4 * 3 * (2048 + 1024) + 1024;

/// `Out` of `kernel.cu`.
#[repr(C)]
struct Out {
    outcomes: u64,
    ids: u64,
    slots: i32,
}

/// Whether a row's weights fit the shared memory of a cluster.
pub(super) fn serves(gpu: &Gpu, vocabulary: usize) -> bool {
    gpu.capability() >= CLUSTERS && slice(vocabulary, MOST_BLOCKS) * 4 + BESIDE <= gpu.shared_memory()
}

/// Tokens of a block's part.
fn slice(vocabulary: usize, blocks: usize) -> usize {
    vocabulary.div_ceil(blocks).next_multiple_of(4)
}

/// Blocks of a row and threads of a block: few rows want many blocks, many rows little overhead.
fn shape(gpu: &Gpu, rows: usize, vocabulary: usize) -> (usize, u32) {
    let fits = |blocks| slice(vocabulary, blocks) * 4 + BESIDE <= gpu.shared_memory();
    match rows {
        64.. if fits(2) => (2, 1024),
        24.. if vocabulary <= 100_000 => (MOST_BLOCKS, 256),
        _ => (MOST_BLOCKS, 512),
    }
}

/// See [`super::draw`]; `false` where the kernel cannot.
pub(super) fn draw(
    logits: &Tensor,
    choices: &Choices,
    ids: Option<&Indices>,
    mailbox: Option<&Mailbox>,
) -> bool {
    let gpu = gpu_of(logits);
    let (rows, vocabulary) = (logits.rows(), logits.cols());
    if rows == 0 {
        return true;
    }
    let Some(placed) = choices.placed.as_ref().filter(|_| vocabulary > 0 && serves(gpu, vocabulary)) else {
        return false;
    };
    check("sample", gpu, DType::F32, &[("logits", logits), ("choices", placed)]);
    let (blocks, threads) = shape(gpu, rows, vocabulary);
    let slice = slice(vocabulary, blocks);
    let out = Out {
        outcomes: mailbox.map_or_else(|| choices.outcomes.on(gpu), Mailbox::address),
        ids: ids.map_or(0, |ids| ids.on(gpu)),
        slots: mailbox.map_or(1, Mailbox::slots) as i32,
    };
    let launch = Launch::blocks(rows * blocks, threads).cluster(blocks);
    launch!(gpu, KERNELS, "draw", launch.shared(4 * slice + BESIDE - 1024).early();
        Mat::of(logits), placed.address(), out, rows as i32, vocabulary as i32, slice as i32);
    true
}
