//! Cuts the attention of several sequences over a cache into tasks.
//!
//! How a sequence is cut depends on its own shape alone: what comes out for it depends neither on what else is in the
//! batch nor on the number of threads.

use super::{
    block::{COLUMNS, Chunk, KEYS, View},
    forward::Outcome,
    parts::Parts,
    rows::HeadRows,
};
use crate::{
    attention::{Heads, Paged, Sequence},
    parallel::brief,
};
use std::ops::Range;

/// Multiply-adds below which work stays on the calling thread: another would take longer to see it.
const SERIAL: usize = 1 << 15;
/// Multiply-adds of one part of a long row of keys, at least.
const PART: usize = 1 << 17;
/// Tasks that a sequence is cut into where its keys are many.
const TASKS: usize = 16;

/// What all sequences of a batch have in common.
#[derive(Clone, Copy)]
pub(super) struct Common<'a> {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    /// Floats that a column takes.
    pub(super) column: usize,
    /// Multiply-adds of a column by a key.
    pub(super) work: usize,
    pub(super) window: Option<usize>,
    /// Slopes in base 2.
    pub(super) slopes: Option<&'a [f32]>,
}

/// The tasks of a batch.
pub(super) struct Schedule<'a> {
    common: Common<'a>,
    plans: Vec<Plan<'a>>,
    tasks: usize,
    kept: usize,
    work: usize,
}

/// One sequence.
struct Plan<'a> {
    sequence: Sequence<'a>,
    /// Row of its first query.
    first: usize,
    /// First key of every query, when there is a window.
    starts: Option<Vec<u32>>,
    /// Of the query heads of kv head 0.
    chunks: Vec<Chunk>,
    /// Keys that any query sees, and of how many a part is.
    seen: Range<usize>,
    part: usize,
    parts: usize,
    /// Tasks, and kept outcomes, of the sequences before.
    tasks_before: usize,
    kept_before: usize,
}

/// Some columns of a sequence over some of its keys.
pub(super) struct Task<'a> {
    pub(super) pages: &'a [u32],
    /// Row of the sequence's first query.
    pub(super) first: usize,
    /// New tokens of the sequence.
    pub(super) new: usize,
    pub(super) view: View<'a>,
    pub(super) kv_head: usize,
    pub(super) chunk: Chunk,
    pub(super) keys: Range<usize>,
}

/// How many keys each of the parts gets into which a long row of keys is cut, so that few columns still occupy many
/// threads; all where there are about as many tasks as wanted, and enough to do in each.
fn part_keys(tasks: usize, columns: usize, work: usize, keys: usize) -> usize {
    if tasks > TASKS / 2 && columns > tasks * COLUMNS {
        return keys.next_multiple_of(KEYS).max(KEYS);
    }
    let least = (PART / (columns * work).max(1)).next_multiple_of(KEYS);
    keys.div_ceil(TASKS.div_ceil(tasks)).next_multiple_of(KEYS).max(least).max(KEYS)
}

/// Runs tasks on the current threads, or one after the other when all are little work.
fn run(tasks: usize, work: usize, task: impl Fn(usize) + Sync + Send) {
    if work <= SERIAL { (0..tasks).for_each(task) } else { brief(tasks, task) }
}

impl<'a> Schedule<'a> {
    pub(super) fn new(common: Common<'a>, paged: Paged<'a>) -> Self {
        let mut schedule = Self { common, plans: Vec::new(), tasks: 0, kept: 0, work: 0 };
        let mut first = 0;
        for sequence in paged.sequences {
            if sequence.new > 0 {
                schedule.add(*sequence, first);
            }
            first += sequence.new;
        }
        schedule
    }

    fn add(&mut self, sequence: Sequence<'a>, first: usize) {
        let Common { heads, kv_heads, column, work, window, .. } = self.common;
        let Sequence { past, new, .. } = sequence;
        let starts: Option<Vec<u32>> = window
            .map(|window| (0..new).map(|query| (past + query + 1).saturating_sub(window) as u32).collect());
        let view = View { past, slopes: None, starts: starts.as_deref() };
        let mut seen = view.keys(&(0..new));
        seen.start = seen.start / KEYS * KEYS;
        let chunks = Chunk::split(0..heads / kv_heads, new, column);
        let tasks = chunks.len() * kv_heads;
        let part = part_keys(tasks, heads * new, work, seen.len());
        let parts = seen.len().div_ceil(part);
        let (tasks_before, kept_before) = (self.tasks, self.kept);
        self.tasks += tasks * parts;
        self.kept += if parts > 1 { heads * new * parts } else { 0 };
        self.work += heads * new * seen.len() * work;
        self.plans.push(Plan {
            sequence,
            first,
            starts,
            chunks,
            seen,
            part,
            parts,
            tasks_before,
            kept_before,
        });
    }

    /// Runs all tasks. `attend` calls what it is given with head, query and outcome of each of its task's columns; the
    /// attention output, `width` values a head, goes to `out`.
    pub(super) fn run(
        &self,
        width: usize,
        out: Heads<'_>,
        attend: impl Fn(Task<'_>, &(dyn Fn(usize, usize, Outcome<'_>) + Sync)) + Sync,
    ) {
        let heads = self.common.heads;
        let kept = Parts::new(self.kept, width);
        run(self.tasks, self.work, |index| {
            let plan = &self.plans[self.plans.partition_point(|plan| plan.tasks_before <= index) - 1];
            let (task, part) = plan.task(index - plan.tasks_before, self.common);
            attend(task, &|head, query, outcome| {
                // SAFETY: a column belongs to one chunk, a chunk and a part to one task.
                unsafe {
                    if plan.parts > 1 {
                        kept.keep(plan.kept(head, query).start + part, &outcome);
                    } else {
                        let rows = HeadRows::new(&out, head, plan.first);
                        rows.write(query, 1.0 / outcome.sum, outcome.values, false);
                    }
                }
            });
        });
        if self.kept == 0 {
            return;
        }
        run(self.plans.len() * heads, self.kept * width, |index| {
            let (plan, head) = (&self.plans[index / heads], index % heads);
            if plan.parts > 1 {
                let rows = HeadRows::new(&out, head, plan.first);
                for query in 0..plan.sequence.new {
                    // SAFETY: all parts are there; every head of a sequence is one task.
                    unsafe { kept.combine(plan.kept(head, query), &rows, query) };
                }
            }
        });
    }
}

impl Plan<'_> {
    /// Task `index` of the sequence, and which part of the keys it is about.
    fn task<'b>(&'b self, index: usize, common: Common<'b>) -> (Task<'b>, usize) {
        let (columns, part) = (index / self.parts, index % self.parts);
        let (kv_head, chunk) = (columns / self.chunks.len(), &self.chunks[columns % self.chunks.len()]);
        let Sequence { past, new, pages } = self.sequence;
        let view = View { past, slopes: common.slopes, starts: self.starts.as_deref() };
        let visible = view.keys(&chunk.queries);
        let first = self.seen.start + part * self.part;
        let start = first.max(visible.start);
        let keys = start..(first + self.part).min(visible.end).max(start);
        let chunk = chunk.of_kv_head(kv_head, common.heads / common.kv_heads);
        (Task { pages, first: self.first, new, view, kv_head, chunk, keys }, part)
    }

    /// Where the outcomes of the parts of a column are kept.
    fn kept(&self, head: usize, query: usize) -> Range<usize> {
        let first = self.kept_before + (head * self.sequence.new + query) * self.parts;
        first..first + self.parts
    }
}
