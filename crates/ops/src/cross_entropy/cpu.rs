//! Chunks of tokens whose logits stay in the cache between the matrix products and the softmax.

use super::{Loss, Tokens};
use crate::{
    linear,
    simd::{Kernel, Rows, block_rows, exp, fold, for_lanes, launch, scratch, sum},
};
use keyfold_tensor::Tensor;
use pulp::Simd;
use std::ops::Range;

/// Logits of one chunk, 8 MiB: they should stay in the cache.
const CHUNK_LOGITS: usize = 1 << 21;
/// Every chunk reads and writes all of `dw`, so few rows cost more than logits that leave the cache: against 512 rows, 256
/// take 2 % longer, 128 take 10 % and 64 take 25 % (D 256, V 4096, AVX-512).
const CHUNK_ROWS: Range<usize> = 128..512;

fn chunks(tokens: usize, vocabulary: usize) -> impl Iterator<Item = Range<usize>> {
    let rows = chunk_rows(vocabulary);
    (0..tokens.div_ceil(rows)).map(move |i| i * rows..((i + 1) * rows).min(tokens))
}

fn chunk_rows(vocabulary: usize) -> usize {
    (CHUNK_LOGITS / vocabulary.max(1)).clamp(CHUNK_ROWS.start, CHUNK_ROWS.end)
}

pub(super) fn forward_backward(
    x: &Tensor,
    w: &Tensor,
    tokens: Tokens<'_>,
    loss_scale: f32,
    dx: &mut Tensor,
    dw: &mut Tensor,
) -> Loss {
    let rows = chunk_rows(w.rows()).min(x.rows());
    let (logits, losses) = (scratch(rows, w.rows()), scratch(1, rows));
    let mut loss = Loss::default();
    for chunk in chunks(x.rows(), w.rows()) {
        let rows = chunk.len();
        let x = x.row_range(chunk.start, rows);
        let mut logits = logits.row_range(0, rows);
        linear::forward(&x, w, None, &mut logits, false);
        let kernel = Gradient {
            logits: Rows::of(&logits),
            losses: Rows::of(&losses),
            vocabulary: w.rows(),
            tokens,
            first: chunk.start,
            loss_scale,
        };
        launch(rows, block_rows(w.rows()), &kernel);
        linear::backward_input(&logits, w, &mut dx.row_range(chunk.start, rows), false);
        linear::backward_weight(&logits, &x, dw, true);
        // SAFETY: the kernel, the only writer, has ended.
        loss += total(unsafe { losses.row(0) }, tokens, chunk);
    }
    loss
}

pub(super) fn evaluate(
    x: &Tensor,
    w: &Tensor,
    tokens: Tokens<'_>,
    mut per_token: Option<&mut [f32]>,
    mut correct: Option<&mut [bool]>,
) -> Loss {
    let rows = chunk_rows(w.rows()).min(x.rows());
    let (logits, results) = (scratch(rows, w.rows()), scratch(2, rows));
    let mut loss = Loss::default();
    for chunk in chunks(x.rows(), w.rows()) {
        let rows = chunk.len();
        let mut logits = logits.row_range(0, rows);
        linear::forward(&x.row_range(chunk.start, rows), w, None, &mut logits, false);
        let kernel = Evaluate {
            logits: Rows::of(&logits),
            results: Rows::of(&results),
            vocabulary: w.rows(),
            tokens,
            first: chunk.start,
        };
        launch(rows, block_rows(w.rows()), &kernel);
        // SAFETY: the kernel, the only writer, has ended.
        let (losses, hits) = unsafe { (results.row(0), results.row(1)) };
        if let Some(per_token) = &mut per_token {
            per_token[chunk.clone()].copy_from_slice(&losses[..rows]);
        }
        if let Some(correct) = &mut correct {
            correct[chunk.clone()].iter_mut().zip(hits).for_each(|(correct, hit)| *correct = *hit > 0.0);
        }
        loss += total(losses, tokens, chunk);
    }
    loss
}

/// Adds up the losses of a chunk in the order of the tokens.
fn total(losses: &[f32], tokens: Tokens<'_>, chunk: Range<usize>) -> Loss {
    let mut total = Loss::default();
    for (token, loss) in chunk.zip(losses) {
        if let Some((_, weight)) = tokens.at(token) {
            total += Loss { sum: f64::from(weight) * f64::from(*loss), weight: f64::from(weight) };
        }
    }
    total
}

/// The largest of `len` values; ignores NaN.
///
/// # Safety
/// The row must be readable.
#[inline(always)]
unsafe fn max<S: Simd>(simd: S, len: usize, row: *const f32) -> f32 {
    let lowest = simd.splat_f32s(f32::NEG_INFINITY);
    let max = fold(
        simd,
        len,
        lowest,
        #[inline(always)]
        // SAFETY: the caller's.
        |max, lanes| unsafe {
            // The second operand wins against NaN.
            simd.max_f32s(lanes.fill(simd, lanes.load(simd, row), f32::NEG_INFINITY), max)
        },
        #[inline(always)]
        |a, b| simd.max_f32s(a, b),
    );
    simd.reduce_max_f32s(max)
}

/// Turns logits into the gradient of the scaled loss by them.
struct Gradient<'a> {
    logits: Rows,
    losses: Rows,
    vocabulary: usize,
    tokens: Tokens<'a>,
    /// Token of the chunk's first row.
    first: usize,
    loss_scale: f32,
}

impl Kernel for Gradient<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        for row in rows {
            // SAFETY: here and below: the rows are those of the chunk, `vocabulary` wide, and targets are below that.
            let (logits, loss) = unsafe { (self.logits.row(row), self.losses.row(0).add(row)) };
            let Some((target, weight)) = self.tokens.at(self.first + row) else {
                // SAFETY: as above.
                unsafe {
                    logits.write_bytes(0, self.vocabulary);
                    *loss = 0.0;
                }
                continue;
            };
            // SAFETY: as above.
            let (max, at_target) = unsafe { (max(simd, self.vocabulary, logits), *logits.add(target)) };
            let shift = simd.splat_f32s(-max);
            let total = sum(
                simd,
                self.vocabulary,
                #[inline(always)]
                // SAFETY: as above.
                |sum, lanes| unsafe {
                    let e = exp(simd, simd.add_f32s(lanes.load(simd, logits), shift));
                    lanes.store(simd, logits, e);
                    simd.add_f32s(sum, lanes.fill(simd, e, 0.0))
                },
            );
            let scale = weight * self.loss_scale;
            let factor = simd.splat_f32s(scale / total);
            for_lanes(
                simd,
                self.vocabulary,
                #[inline(always)]
                // SAFETY: as above.
                |lanes| unsafe { lanes.store(simd, logits, simd.mul_f32s(factor, lanes.load(simd, logits))) },
            );
            // SAFETY: as above.
            unsafe {
                *logits.add(target) -= scale;
                *loss = total.ln() - (at_target - max);
            }
        }
    }
}

/// Loss and hit of each row.
struct Evaluate<'a> {
    logits: Rows,
    results: Rows,
    vocabulary: usize,
    tokens: Tokens<'a>,
    /// Token of the chunk's first row.
    first: usize,
}

impl Kernel for Evaluate<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        for row in rows {
            // SAFETY: here and below: the rows are those of the chunk, `vocabulary` wide, and targets are below that.
            let (logits, loss, hit) =
                unsafe { (self.logits.row(row), self.results.row(0).add(row), self.results.row(1).add(row)) };
            let Some((target, _)) = self.tokens.at(self.first + row) else {
                // SAFETY: as above.
                unsafe { (*loss, *hit) = (0.0, 0.0) };
                continue;
            };
            // SAFETY: as above.
            let (max, at_target) = unsafe { (max(simd, self.vocabulary, logits), *logits.add(target)) };
            let shift = simd.splat_f32s(-max);
            let total = sum(
                simd,
                self.vocabulary,
                #[inline(always)]
                // SAFETY: as above.
                |sum, lanes| unsafe {
                    let e = exp(simd, simd.add_f32s(lanes.load(simd, logits), shift));
                    simd.add_f32s(sum, lanes.fill(simd, e, 0.0))
                },
            );
            // SAFETY: as above.
            unsafe {
                *loss = total.ln() - (at_target - max);
                let first_of_equals = at_target == max && (0..target).all(|i| *logits.add(i) != max);
                *hit = f32::from(u8::from(first_of_equals));
            }
        }
    }
}
