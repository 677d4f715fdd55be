//! Attention on the host's processor.
//!
//! Files to read in order: `block` (who works on what), `tile` (the matrix product), `softmax`, `forward`, `backward`,
//! `schedule` (sequences over a cache), `cached`.

mod backward;
mod block;
mod cached;
mod decode;
mod forward;
mod parts;
mod rows;
mod schedule;
mod scratch;
mod softmax;
mod tile;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod tpa;
mod transpose;

pub(super) use backward::{Inputs, backward};
pub(super) use cached::cached;
pub(super) use tpa::tpa_cached;

use super::{Heads, Shape};
use block::{Chunk, View};
use forward::{Attend, Outcome, Queries, Source};
use keyfold_tensor::Tensor;
use pulp::Arch;
use rayon::prelude::*;
use rows::{HeadRows, PagedRows};

/// Slopes in the base-2 scale of the scores.
fn base2(slopes: Option<&[f32]>) -> Option<Vec<f32>> {
    slopes.map(|slopes| slopes.iter().map(|slope| slope * std::f32::consts::LOG2_E).collect())
}

/// Calls `work` for every task, each a steal of its own, because causal tasks differ in size.
fn for_each_task(tasks: usize, work: impl Fn(usize) + Sync + Send) {
    match tasks {
        0 => {}
        1 => work(0),
        _ => (0..tasks).into_par_iter().with_max_len(1).for_each(work),
    }
}

/// What the queries of batch row `batch` see.
fn view<'a>(shape: &Shape<'a>, slopes: Option<&'a [f32]>, batch: usize) -> View<'a> {
    let starts = shape.doc_starts.map(|starts| &starts[batch * shape.seq..][..shape.seq]);
    View { past: 0, slopes, starts }
}

/// See [`super::forward`].
pub(super) fn forward(
    arch: Arch,
    q: Heads<'_>,
    k: Heads<'_>,
    v: Heads<'_>,
    shape: &Shape<'_>,
    out: Heads<'_>,
    lse: &Tensor,
) {
    let group = q.count / k.count;
    let slopes = base2(shape.alibi);
    // The chunks of one kv head are those of every other, but for the numbers of the query heads.
    let chunks = Chunk::split(0..group, shape.seq, k.width + v.width);
    for_each_task(shape.batch * k.count * chunks.len(), |task| {
        let (chunk, kv_head) = (task % chunks.len(), task / chunks.len() % k.count);
        let batch = task / chunks.len() / k.count;
        let chunk = chunks[chunk].of_kv_head(kv_head, group);
        let first = batch * shape.seq;
        let view = view(shape, slopes.as_deref(), batch);
        let finish = |head: usize, query: usize, outcome: Outcome<'_>| {
            // SAFETY: a column belongs to one chunk, a chunk to one task.
            unsafe {
                HeadRows::new(&out, head, first).write(query, 1.0 / outcome.sum, outcome.values, false);
                let row = (batch * q.count + head) * lse.stride();
                *lse.as_mut_ptr().add(row + query) = outcome.log_sum_exp();
            }
        };
        arch.dispatch(Attend {
            source: Source {
                keys: PagedRows::adjacent(HeadRows::new(&k, kv_head, first)),
                values: PagedRows::adjacent(HeadRows::new(&v, kv_head, first)),
                rotate: None,
            },
            queries: Queries { heads: q, first, scale: shape.scale, view },
            chunk: &chunk,
            keys: view.keys(&chunk.queries),
            finish,
        });
    });
}
