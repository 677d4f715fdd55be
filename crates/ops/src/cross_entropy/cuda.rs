//! Chunks of tokens: a product, `kernel.cu` over the logits in place, two products with what they became.

use super::{Loss, Pending, Tokens};
use crate::{
    cuda::{
        Forms, Launch, Mat, Module, arena, check, forms, gpu_of, launch, module, scratch, uploaded_f32,
        uploaded_u32,
    },
    linear,
};
use keyfold_core::DType;
use keyfold_tensor::{Tensor, cuda::Gpu};
use std::ops::Range;

static KERNELS: Module = module!("cross_entropy");

/// Logits of a chunk, in bytes. Every chunk reads and writes all of `dw`, so that few large chunks are better; this is what
/// a model's other activations take at least.
const CHUNK_BYTES: usize = 512 << 20;
const THREADS: u32 = 512;

fn chunks(tokens: usize, vocabulary: usize, dtype: DType) -> impl Iterator<Item = Range<usize>> {
    // As many chunks as needed, of equal size, a multiple of what matrix units take at a time.
    let fit = (CHUNK_BYTES / (vocabulary.max(1) * dtype.bytes())).max(128);
    let rows = tokens.div_ceil(tokens.div_ceil(fit).max(1)).next_multiple_of(128);
    (0..tokens.div_ceil(rows.max(1))).map(move |i| i * rows..((i + 1) * rows).min(tokens))
}

/// Logits of `rows` tokens; rows begin at multiples of 16 bytes, which a vocabulary of any size may not.
fn logits(gpu: &Gpu, rows: usize, vocabulary: usize, dtype: DType) -> Tensor {
    arena(gpu).tensor(rows, vocabulary.next_multiple_of(8), dtype).columns(0, vocabulary)
}

/// Targets and weights on the device.
struct Uploaded {
    targets: Tensor,
    weights: Option<Tensor>,
}

impl Uploaded {
    fn of(gpu: &Gpu, tokens: Tokens<'_>) -> Self {
        Self {
            targets: uploaded_u32(gpu, tokens.targets),
            weights: tokens.weights.map(|weights| uploaded_f32(gpu, weights)),
        }
    }

    /// Addresses of those of the tokens from `first` on.
    fn from(&self, first: usize) -> (u64, u64) {
        let at = 4 * first as u64;
        (self.targets.address() + at, self.weights.as_ref().map_or(0, |weights| weights.address() + at))
    }
}

pub(super) fn forward_backward(
    x: &Tensor,
    w: &Tensor,
    tokens: Tokens<'_>,
    loss_scale: f32,
    dx: &Tensor,
    dw: &Tensor,
) -> Pending {
    let (gpu, dtype) = (gpu_of(x), x.dtype());
    check("cross_entropy", gpu, dtype, &[("w", w), ("dx", dx)]);
    check("cross_entropy", gpu, DType::F32, &[("dw", dw)]);
    let (vocabulary, uploaded) = (w.rows(), Uploaded::of(gpu, tokens));
    let losses = scratch(gpu, 1, x.rows().max(1));
    let mut all = None;
    for chunk in chunks(x.rows(), vocabulary, dtype) {
        let rows = chunk.len();
        let logits = all.get_or_insert_with(|| logits(gpu, rows, vocabulary, dtype)).row_range(0, rows);
        let x = x.row_range(chunk.start, rows);
        linear::forward(&x, w, None, &mut logits.clone(), false);
        let form = Forms::of(dtype, &[vocabulary], &[&logits]);
        let (targets, weights) = uploaded.from(chunk.start);
        launch!(gpu, KERNELS, form.choose(forms!("gradient")), Launch::blocks(rows, THREADS);
            Mat::of(&logits), targets, weights, loss_scale, losses.address() + 4 * chunk.start as u64,
            vocabulary as i32);
        linear::backward_input(&logits, w, &mut dx.row_range(chunk.start, rows), false);
        linear::backward_weight(&logits, &x, &mut dw.clone(), true);
    }
    let sum = scratch(gpu, 1, 2);
    launch!(gpu, KERNELS, "total", Launch::blocks(1, 1024);
        losses.address(), x.rows() as i32, sum.address());
    Pending::device(sum, weight(tokens))
}

pub(super) fn evaluate(
    x: &Tensor,
    w: &Tensor,
    tokens: Tokens<'_>,
    per_token: Option<&mut [f32]>,
    correct: Option<&mut [bool]>,
) -> Loss {
    let gpu = gpu_of(x);
    check("cross_entropy::evaluate", gpu, x.dtype(), &[("w", w)]);
    let (vocabulary, uploaded) = (w.rows(), Uploaded::of(gpu, tokens));
    let results = scratch(gpu, 2, x.rows().max(1));
    let hits = results.address() + 4 * results.cols() as u64;
    let mut all = None;
    for chunk in chunks(x.rows(), vocabulary, DType::F32) {
        let rows = chunk.len();
        let logits = all.get_or_insert_with(|| logits(gpu, rows, vocabulary, DType::F32)).row_range(0, rows);
        linear::forward(&x.row_range(chunk.start, rows), w, None, &mut logits.clone(), false);
        let form = Forms::of(DType::F32, &[vocabulary], &[&logits]);
        let (targets, weights) = uploaded.from(chunk.start);
        let at = 4 * chunk.start as u64;
        launch!(gpu, KERNELS, form.choose(forms!("evaluate")), Launch::blocks(rows, THREADS);
            Mat::of(&logits), targets, weights, results.address() + at, hits + at, vocabulary as i32);
    }
    let (losses, hits) = (results.row_range(0, 1).to_vec(), results.row_range(1, 1).to_vec());
    let losses = &losses[..x.rows()];
    if let Some(per_token) = per_token {
        per_token.copy_from_slice(losses);
    }
    if let Some(correct) = correct {
        correct.iter_mut().zip(hits).for_each(|(correct, hit)| *correct = hit > 0.0);
    }
    let mut loss = Loss::default();
    for (token, value) in losses.iter().enumerate() {
        if let Some((_, weight)) = tokens.at(token) {
            loss += Loss { sum: f64::from(weight) * f64::from(*value), weight: f64::from(weight) };
        }
    }
    loss
}

/// The sum of the weights of what counts.
fn weight(tokens: Tokens<'_>) -> f64 {
    (0..tokens.targets.len()).filter_map(|token| tokens.at(token)).map(|(_, weight)| f64::from(weight)).sum()
}
