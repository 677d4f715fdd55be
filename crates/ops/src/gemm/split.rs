//! Splitting a product over threads.

use super::{View, ViewMut, view::Element};
use rayon::prelude::*;
use std::ops::Range;

/// One product, or a thread's share of one.
pub(super) struct Product<'a, B> {
    pub(super) out: ViewMut<'a>,
    pub(super) accumulate: bool,
    pub(super) alpha: f32,
    pub(super) a: View<'a>,
    pub(super) b: View<'a, B>,
}

/// What splitting costs a kernel.
pub(super) struct Grain {
    /// Multiply-adds below which a second thread does not pay.
    pub(super) min_work: usize,
    /// Rows and columns of `out` that should stay together.
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Cost of preparing one element of `a`, and of `b`, counted in the same unit.
    pub(super) a_cost: usize,
    pub(super) b_cost: usize,
}

/// Calls `work` for blocks that together are `product`, one a thread.
///
/// Every thread prepares the rows of `a` and the columns of `b` that it needs, so the grid of blocks is chosen to
/// prepare as little as possible twice.
pub(super) fn run<B: Element>(product: Product<'_, B>, grain: &Grain, work: impl Fn(Product<'_, B>) + Sync) {
    let (m, n, k) = (product.out.rows, product.out.cols, product.a.cols);
    let wanted = (m * n * k / grain.min_work.max(1)).max(1);
    let threads = if wanted == 1 { 1 } else { wanted.min(rayon::current_num_threads()) };
    if threads == 1 {
        return work(product);
    }
    let (rows, cols) = (m.div_ceil(grain.rows), n.div_ceil(grain.cols));
    let cost = |pm: usize| {
        let pn = threads / pm;
        let (tall, wide) = (rows.div_ceil(pm) * grain.rows, cols.div_ceil(pn) * grain.cols);
        tall * wide * k / 8 + k * (tall * grain.a_cost + wide * grain.b_cost)
    };
    let pm = (1..=threads).min_by_key(|&pm| cost(pm)).unwrap_or(1);
    let pn = threads / pm;
    let range = |index: usize, parts: usize, units: usize, unit: usize, end: usize| -> Range<usize> {
        (units * index / parts * unit).min(end)..(units * (index + 1) / parts * unit).min(end)
    };
    (0..pm * pn).into_par_iter().with_max_len(1).for_each(|index| {
        let r = range(index / pn, pm, rows, grain.rows, m);
        let c = range(index % pn, pn, cols, grain.cols, n);
        if r.is_empty() || c.is_empty() {
            return;
        }
        work(Product {
            // SAFETY: blocks of the grid do not overlap.
            out: unsafe { product.out.part(r.start, c.start, r.len(), c.len()) },
            a: product.a.part(r.start, 0, r.len(), k),
            b: product.b.part(0, c.start, k, c.len()),
            ..product
        });
    });
}
