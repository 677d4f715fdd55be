//! Many rows by bf16 weights: the rows become tiles once, for all weights that read them; then panels of the weights are
//! packed one after the other and all rows pass by each.
//!
//! Work is cut along the outputs, so that a weight is packed once. Every element is the same sum in the same order as in
//! [`super::run`] and [`super::few`].

use super::{
    KT, Parts, kernel, pack,
    panel::{BLOCK, Panel, WORDS, Walk},
};
use crate::{
    gemm::{
        Target,
        scratch::{self, Slot},
        split::Product,
        view::{Element, View},
    },
    parallel::brief,
};
use half::bf16;
use std::ops::Range;

/// Most steps of k of a panel: 36 KiB of a 48 KiB first-level cache.
pub(super) const SPAN: usize = 18;
/// Words of packed rows that pass by: somewhat less than half of a 2 MiB second-level cache.
const PASSING: usize = 224 << 10;
/// Values of `a` that a task packs, at least.
const MIN_PACK: usize = 1 << 14;
/// Multiply-adds of one task, at least.
const MIN_WORK: usize = 1 << 20;
/// Tasks for each thread, at most: so that one that is late leaves some to the others.
const TASKS: usize = 3;

/// Whether the operands are of this kind.
pub(in crate::gemm) fn takes<B: Element>(product: &Product<'_, B>) -> bool {
    B::IS_BF16 && product.a.col_stride == 1 && product.b.row_stride == 1
}

/// One product of operands that [`takes`] has seen.
pub(in crate::gemm) fn run_one<B: Element>(product: Product<'_, B>, parts: Parts) {
    let Product { out, accumulate, alpha, a, b } = product;
    debug_assert!(B::IS_BF16, "a weight of f32");
    // SAFETY: the elements are bf16, and the view's.
    let weight = unsafe { View::new(b.ptr.cast::<bf16>(), b.cols, b.rows, b.col_stride, 1) };
    run(a, alpha, &[Target { weight, out, accumulate }], parts);
}

/// `out (+)= alpha a weight^T` of every target; rows of `a` and of the weights lie along k.
pub(in crate::gemm) fn run(a: View<'_>, alpha: f32, targets: &[Target<'_>], parts: Parts) {
    let chunk = chunk_rows(a.rows, a.cols, parts);
    scratch::with(packed_words(chunk, a.cols, parts), |packed| {
        for first in (0..a.rows).step_by(chunk) {
            let a = a.part(first, 0, chunk.min(a.rows - first), a.cols);
            pack_rows(a, alpha, parts, packed);
            multiply(&Packed { words: packed, rows: a.rows, k: a.cols, parts }, targets, first);
        }
    });
}

/// How many of `rows` pass by a panel: a span of them is meant for the second-level cache.
pub(super) fn chunk_rows(rows: usize, k: usize, parts: Parts) -> usize {
    let span = k.div_ceil(KT).min(SPAN);
    let most = (PASSING / (span * WORDS * parts.count())).max(1);
    let blocks = rows.div_ceil(BLOCK);
    blocks.div_ceil(blocks.div_ceil(most)) * BLOCK
}

/// Words of `rows` x `k` values in blocks of tiles.
pub(super) fn packed_words(rows: usize, k: usize, parts: Parts) -> usize {
    rows.div_ceil(BLOCK) * k.div_ceil(KT) * parts.count() * WORDS
}

/// A place that tasks write different parts of.
#[derive(Clone, Copy)]
struct Shared(*mut u32);

// SAFETY: tasks write blocks of their own.
unsafe impl Sync for Shared {}

impl Shared {
    fn at(&self, words: usize) -> *mut u32 {
        self.0.wrapping_add(words)
    }
}

/// Packs `a`, each thread some of its rows.
pub(super) fn pack_rows(a: View<'_>, alpha: f32, parts: Parts, to: *mut u32) {
    let (to, blocks) = (Shared(to), a.rows.div_ceil(BLOCK));
    let tasks = (a.rows * a.cols / MIN_PACK).min(4 * rayon::current_num_threads()).clamp(1, blocks);
    brief(tasks, |task| {
        let (start, end) = (blocks * task / tasks * BLOCK, (blocks * (task + 1) / tasks * BLOCK).min(a.rows));
        let rows = a.part(start, 0, end - start, a.cols);
        // SAFETY: AMX and AVX-512 are usable where this is called; blocks of rows follow one another.
        unsafe { pack::pack(rows, alpha, parts, false, 2, to.at(packed_words(start, a.cols, parts))) };
    });
}

/// Packed rows of `a`.
pub(super) struct Packed {
    pub(super) words: *const u32,
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) parts: Parts,
}

// SAFETY: what is packed is only read.
unsafe impl Sync for Packed {}

impl Packed {
    fn steps(&self) -> usize {
        self.k.div_ceil(KT)
    }

    /// Number of spans, and the steps of each of them but the last.
    pub(super) fn spans(&self) -> (usize, usize) {
        let spans = self.steps().div_ceil(SPAN);
        (spans, self.steps().div_ceil(spans.max(1)))
    }

    /// The block that begins at row `row`, from step `step` on.
    pub(super) fn block(&self, row: usize, step: usize) -> *const u32 {
        self.words.wrapping_add((row / BLOCK * self.steps() + step) * self.parts.count() * WORDS)
    }

    /// Calls `work` for ranges that together are `0 .. panels`, on many threads; where panels are few, also for ranges of
    /// rows that together are all.
    pub(super) fn share(&self, panels: usize, work: impl Fn(Range<usize>, Range<usize>) + Sync) {
        let threads = (self.rows * panels * BLOCK * self.k / MIN_WORK).clamp(1, rayon::current_num_threads());
        // Rows pass by a second time for a task's next span: better few tasks then.
        let each = if self.spans().0 > 1 { 1 } else { TASKS };
        let along = (threads * each).min(panels);
        let blocks = self.rows.div_ceil(BLOCK);
        let across = threads.div_ceil(along.max(1)).min(blocks);
        brief(along * across, |task| {
            let (column, row) = (task / across, task % across);
            let rows = blocks * row / across * BLOCK..(blocks * (row + 1) / across * BLOCK).min(self.rows);
            work(panels * column / along..panels * (column + 1) / along, rows);
        });
    }
}

/// All targets, into their rows from `first` on.
pub(super) fn multiply(a: &Packed, targets: &[Target<'_>], first: usize) {
    let mut panels = Vec::new();
    for target in targets {
        panels.extend((0..target.weight.rows).step_by(BLOCK).map(|line| (target, line)));
    }
    let (spans, span) = a.spans();
    a.share(panels.len(), |range, rows| {
        let cut = |index: usize, start: usize| {
            let (Target { weight, .. }, line) = panels[index];
            let count = BLOCK.min(weight.rows - line);
            let k = (span * KT).min(a.k - start * KT);
            let half = |at: usize, rows: usize| weight.part(line + at, start * KT, rows, k);
            Panel { halves: [half(0, count.min(16)), half(count.min(16), count.saturating_sub(16))] }
        };
        // SAFETY: AMX and AVX-512 are usable where this is called; tasks write disjoint parts of the outputs.
        scratch::with_slot(Slot::Task, span * WORDS, |packed| unsafe {
            kernel::configure();
            let all = (0..spans).flat_map(|number| range.clone().map(move |index| (number * span, index)));
            let mut next = all.clone().skip(1);
            for (start, index) in all {
                let panel = cut(index, start);
                panel.pack(packed);
                let after = next.next().map(|(start, index)| cut(index, start));
                let (Target { weight, out, accumulate }, line) = panels[index];
                let cols = BLOCK.min(weight.rows - line);
                for row in rows.clone().step_by(BLOCK) {
                    if let Some(panel) = &after {
                        panel.prefetch((row - rows.start) / BLOCK, rows.len().div_ceil(BLOCK));
                    }
                    let count = BLOCK.min(rows.end - row);
                    let out = out.part(first + row, line, count, cols);
                    let walk = Walk {
                        a: a.block(row, start),
                        panel: packed,
                        steps: span.min(a.steps() - start),
                        out: out.ptr,
                        out_stride: out.row_stride,
                        add: *accumulate || start > 0,
                        two: true,
                        next_out: out.ptr.wrapping_add(BLOCK * out.row_stride),
                        next_stride: out.row_stride,
                    };
                    walk.run_within(a.parts, count, cols);
                }
            }
            kernel::release();
        });
    });
}
