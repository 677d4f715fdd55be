//! Queries over a cache: decoding and chunked prefill.

use super::{
    base2,
    block::{Chunk, KEYS, View},
    decode::{Decode, NARROW},
    forward::{Attend, Outcome, Queries, Source},
    rows::HeadRows,
    scratch::padded,
};
use crate::{
    attention::{Cached, Heads},
    parallel::brief,
    simd::scratch,
};
use pulp::Arch;
use std::ops::Range;

/// Multiply-adds below which work stays on the calling thread: another would take longer to see it.
const SERIAL: usize = 1 << 15;
/// Multiply-adds of one part of a long row of keys, at least.
const PART: usize = 1 << 17;

/// How many keys each of the parts gets into which a long row of keys is cut, so that few columns still occupy many
/// threads. Depends on the shape alone: the result is the same on every machine.
pub(super) fn part_keys(tasks: usize, columns: usize, widths: usize, keys: usize) -> usize {
    const TASKS: usize = 16;
    let least = (PART / (columns * widths).max(1)).next_multiple_of(KEYS);
    keys.div_ceil(TASKS.div_ceil(tasks)).next_multiple_of(KEYS).max(least).max(KEYS)
}

/// Runs tasks on the current threads, or one after the other when all are little work.
pub(super) fn run(tasks: usize, work: usize, task: impl Fn(usize) + Sync + Send) {
    if work <= SERIAL { (0..tasks).for_each(task) } else { brief(tasks, task) }
}

/// Outcomes of the parts of every column, and their combination.
pub(super) struct Parts {
    tensor: keyfold_tensor::Tensor,
    parts: usize,
    width: usize,
}

impl Parts {
    pub(super) fn new(columns: usize, parts: usize, width: usize) -> Self {
        Self { tensor: scratch(columns * parts, padded(width) + 2), parts, width }
    }

    /// Keeps the outcome of `part` of `column`.
    ///
    /// # Safety
    /// Nobody else is at work on that part of that column.
    #[inline(always)]
    pub(super) unsafe fn keep(&self, column: usize, part: usize, outcome: &Outcome<'_>) {
        // SAFETY: the row belongs to this part of this column alone.
        let row = unsafe { self.tensor.row_mut(column * self.parts + part) };
        row[0] = outcome.max;
        row[1] = outcome.sum;
        row[2..2 + self.width].copy_from_slice(outcome.values);
    }

    /// Writes the attention output of `column` to `row` of `out`.
    ///
    /// # Safety
    /// All parts of the column are there, and nobody else is at work on that row of that head.
    pub(super) unsafe fn combine(&self, column: usize, out: &HeadRows, row: usize) {
        let parts = (0..self.parts).map(|part| {
            // SAFETY: the parts have been written.
            unsafe { self.tensor.row(column * self.parts + part) }
        });
        let max = parts.clone().fold(f32::NEG_INFINITY, |max, part| max.max(part[0]));
        let weight = |part: &[f32]| if part[1] > 0.0 { (part[0] - max).exp2() } else { 0.0 };
        let sum: f32 = parts.clone().map(|part| part[1] * weight(part)).sum();
        for (index, part) in parts.enumerate() {
            // SAFETY: the caller's.
            unsafe { out.write(row, weight(part) / sum, &part[2..], index > 0) };
        }
    }
}

/// See [`crate::attention::cached`].
pub(in crate::attention) fn cached(arch: Arch, q: Heads<'_>, cache: &Cached<'_>, out: Heads<'_>) {
    let (new, group) = (q.tensor.rows(), q.count / cache.k.count);
    let widths = cache.k.width + cache.v.width;
    let slopes = base2(cache.alibi);
    let starts: Option<Vec<u32>> = cache
        .window
        .map(|window| (0..new).map(|query| (cache.past + query + 1).saturating_sub(window) as u32).collect());
    let view = View { past: cache.past, slopes: slopes.as_deref(), starts: starts.as_deref() };
    let chunks = Chunk::split(0..group, new, widths);
    let tasks = chunks.len() * cache.k.count;
    let seen = view.keys(&(0..new));
    let part = part_keys(tasks, q.count * new, widths, seen.len());
    let parts = seen.len().div_ceil(part);
    let work = q.count * new * seen.len() * widths;

    let attend = |task: usize, keys: Range<usize>, finish: &(dyn Fn(usize, usize, Outcome<'_>) + Sync)| {
        let kv_head = task / chunks.len();
        let chunk = chunks[task % chunks.len()].of_kv_head(kv_head, group);
        let source = Source {
            keys: HeadRows::new(&cache.k, kv_head, 0),
            values: HeadRows::new(&cache.v, kv_head, 0),
            rotate: cache.rotate,
        };
        let queries = Queries { heads: q, first: 0, scale: cache.scale, view };
        let visible = view.keys(&chunk.queries);
        let start = keys.start.max(visible.start);
        let keys = start..keys.end.min(visible.end).max(start);
        if new == 1 && chunk.heads.len() <= NARROW {
            arch.dispatch(Decode { source, queries, heads: chunk.heads, keys, finish });
        } else {
            arch.dispatch(Attend { source, queries, keys, chunk: &chunk, finish });
        }
    };
    if parts == 1 {
        run(tasks, work, |task| {
            attend(task, seen.clone(), &|head, query, outcome| {
                // SAFETY: a column belongs to one chunk, a chunk to one task.
                unsafe {
                    HeadRows::new(&out, head, 0).write(query, 1.0 / outcome.sum, outcome.values, false)
                };
            });
        });
        return;
    }
    let kept = Parts::new(q.count * new, parts, cache.v.width);
    run(tasks * parts, work, |index| {
        let (task, number) = (index / parts, index % parts);
        let first = seen.start + number * part;
        attend(task, first..(first + part).min(seen.end), &|head, query, outcome| {
            // SAFETY: a column belongs to one chunk, a chunk and a part to one task.
            unsafe { kept.keep(head * new + query, number, &outcome) };
        });
    });
    run(q.count, q.count * new * parts * cache.v.width, |head| {
        let rows = HeadRows::new(&out, head, 0);
        // SAFETY: all parts are there; every head is one task.
        (0..new).for_each(|query| unsafe { kept.combine(head * new + query, &rows, query) });
    });
}
