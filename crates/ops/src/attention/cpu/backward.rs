//! Backward: recomputes the probabilities of a block from the log-sum-exps, five products per pair of blocks.
//!
//! A task owns the gradient of the keys and values of one kv head, or a partial sum of it where there are few kv heads;
//! it goes through its chunks of columns one after the other. The gradient of the queries belongs to the chunk.

use super::{
    base2,
    block::{Begun, Block, COLUMNS, Chunk, KEYS, View},
    for_each_task,
    rows::{HeadRows, read_columns},
    scratch::{padded, pitch, with_scratch},
    softmax::Scores,
    tile::{Left, Product, Start, Trim},
    transpose::transpose,
    view,
};
use crate::{
    attention::{Gradient, Heads, Shape},
    simd::{dot, scratch},
};
use keyfold_tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};
use std::f32::consts::LOG2_E;

/// Tasks there should be, so that every thread finds work. Fixed: the split decides how partial sums add up.
const TASKS: usize = 16;

/// What the backward pass reads.
#[derive(Clone, Copy)]
pub(in crate::attention) struct Inputs<'a> {
    pub(in crate::attention) q: Heads<'a>,
    pub(in crate::attention) k: Heads<'a>,
    pub(in crate::attention) v: Heads<'a>,
    pub(in crate::attention) out: Heads<'a>,
    pub(in crate::attention) d_out: Heads<'a>,
    pub(in crate::attention) lse: &'a Tensor,
}

/// See [`crate::attention::backward`].
pub(in crate::attention) fn backward(
    arch: Arch,
    inputs: Inputs<'_>,
    shape: &Shape<'_>,
    dq: Gradient<'_>,
    dk: Gradient<'_>,
    dv: Gradient<'_>,
) {
    let Inputs { q, k, v, .. } = inputs;
    let (group, seq) = (q.count / k.count, shape.seq);
    let slopes = base2(shape.alibi);
    let chunks = Chunk::split(0..group, seq, k.width + v.width);
    let kv_heads = shape.batch * k.count;
    let splits = TASKS.div_ceil(kv_heads).min(chunks.len());
    // One row of partial sums per kv head, split and key: the key's, then the value's.
    let partial = (splits > 1).then(|| scratch(kv_heads * splits * seq, k.width + v.width));
    let partial_k = partial.as_ref().map(|tensor| tensor.columns(0, k.width));
    let partial_v = partial.as_ref().map(|tensor| tensor.columns(k.width, v.width));

    for_each_task(kv_heads * splits, |task| {
        let (kv, split) = (task / splits, task % splits);
        let (batch, kv_head) = (kv / k.count, kv % k.count);
        let first = batch * seq;
        let target = |part: &Option<Tensor>, whole: &Gradient<'_>| match part {
            Some(tensor) => {
                Target { rows: HeadRows::new(&Heads::packed(tensor, 1), 0, task * seq), add: false }
            }
            None => Target { rows: HeadRows::new(&whole.heads, kv_head, first), add: whole.accumulate },
        };
        let (dk, dv) = (target(&partial_k, &dk), target(&partial_v, &dv));
        let mut written = vec![false; seq.div_ceil(KEYS)];
        for chunk in chunks.iter().skip(split).step_by(splits) {
            arch.dispatch(Step {
                inputs,
                chunk: &chunk.of_kv_head(kv_head, group),
                kv_head,
                batch,
                shape,
                view: view(shape, slopes.as_deref(), batch),
                dq,
                dk,
                dv,
                written: &mut written,
            });
        }
        for block in (0..written.len()).filter(|block| !written[*block]) {
            for row in block * KEYS..((block + 1) * KEYS).min(seq) {
                // SAFETY: a kv head, or its part, belongs to one task.
                [dk, dv]
                    .iter()
                    .filter(|target| !target.add)
                    .for_each(|target| unsafe { target.rows.clear(row) });
            }
        }
    });

    let (Some(partial_k), Some(partial_v)) = (partial_k, partial_v) else { return };
    const ROWS: usize = 32;
    let blocks = seq.div_ceil(ROWS);
    for_each_task(kv_heads * blocks, |task| {
        let (kv, block) = (task / blocks, task % blocks);
        for (partial, whole) in [(&partial_k, &dk), (&partial_v, &dv)] {
            let to = HeadRows::new(&whole.heads, kv % k.count, kv / k.count * seq);
            for row in block * ROWS..((block + 1) * ROWS).min(seq) {
                for split in 0..splits {
                    // SAFETY: the partial sums are complete, and these rows of this kv head belong to this task.
                    unsafe {
                        let from = partial.row((kv * splits + split) * seq + row);
                        to.write(row, 1.0, from, whole.accumulate || split > 0);
                    }
                }
            }
        }
    });
}

/// Where the gradient of keys or values goes.
#[derive(Clone, Copy)]
struct Target {
    rows: HeadRows,
    /// Whether to add to what is there from the start.
    add: bool,
}

/// A chunk of columns against all the keys it sees.
struct Step<'a> {
    inputs: Inputs<'a>,
    chunk: &'a Chunk,
    kv_head: usize,
    batch: usize,
    shape: &'a Shape<'a>,
    view: View<'a>,
    dq: Gradient<'a>,
    dk: Target,
    dv: Target,
    /// Which blocks of keys an earlier chunk of the task has written to.
    written: &'a mut [bool],
}

/// What columns need, packed; of a whole chunk or of one block.
struct Packed<'a> {
    /// Queries with the scale of base-2 scores, a column each.
    q_columns: &'a mut [f32],
    /// Queries with the scale of scores, a row each.
    q_rows: &'a mut [f32],
    d_out_columns: &'a mut [f32],
    d_out_rows: &'a mut [f32],
    dq: &'a mut [f32],
    lse: &'a mut [f32],
    delta: &'a mut [f32],
}

impl Packed<'_> {
    /// The part of block `index`, where a column has `row` and `value_row` channels.
    #[inline(always)]
    fn block(&mut self, index: usize, row: usize, value_row: usize) -> Packed<'_> {
        let (side, value_side) = (COLUMNS * row, COLUMNS * value_row);
        Packed {
            q_columns: &mut self.q_columns[index * side..][..side],
            q_rows: &mut self.q_rows[index * side..][..side],
            d_out_columns: &mut self.d_out_columns[index * value_side..][..value_side],
            d_out_rows: &mut self.d_out_rows[index * value_side..][..value_side],
            dq: &mut self.dq[index * side..][..side],
            lse: &mut self.lse[index * COLUMNS..][..COLUMNS],
            delta: &mut self.delta[index * COLUMNS..][..COLUMNS],
        }
    }
}

impl WithSimd for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Inputs { k, v, .. } = self.inputs;
        let (row, value_row) = (pitch(k.width), pitch(v.width));
        let blocks = self.chunk.blocks().count();
        let (side, value_side) = (COLUMNS * row, COLUMNS * value_row);
        let lengths = [
            blocks * side,
            blocks * side,
            blocks * value_side,
            blocks * value_side,
            blocks * side,
            blocks * COLUMNS,
            blocks * COLUMNS,
            KEYS * row,
            KEYS * value_row,
            KEYS * row,
            KEYS * value_row,
            KEYS * COLUMNS,
            KEYS * COLUMNS,
        ];
        with_scratch(
            lengths,
            #[inline(always)]
            |[q_columns, q_rows, d_out_columns, d_out_rows, dq, lse, delta, keys, values, dk, dv, p, ds]| {
                let mut begun = Begun::default();
                let mut packed = Packed { q_columns, q_rows, d_out_columns, d_out_rows, dq, lse, delta };
                for (index, block) in self.chunk.blocks().enumerate() {
                    self.pack(simd, &block, &mut packed.block(index, row, value_row));
                }
                let first = self.batch * self.shape.seq;
                let (key_rows, value_rows) =
                    (HeadRows::new(&k, self.kv_head, first), HeadRows::new(&v, self.kv_head, first));
                let seen = self.view.keys(&self.chunk.queries);
                // Every chunk cuts the keys at the same places.
                for start in (seen.start / KEYS * KEYS..seen.end).step_by(KEYS) {
                    let range = start..(start + KEYS).min(seen.end);
                    key_rows.read_all(range.clone(), keys);
                    value_rows.read_all(range.clone(), values);
                    let mut side = KeySide { keys, values, dk, dv, begun: false };
                    for (index, block) in self.chunk.blocks().enumerate() {
                        if !self.view.sees(&block, &range) {
                            continue;
                        }
                        let mask = self.view.mask(&block, &range);
                        let pair = Pair {
                            view: &self.view,
                            block: &block,
                            seen: Scores {
                                keys: range.clone(),
                                columns: block.padded(),
                                mask: mask.as_ref(),
                            },
                            width: k.width,
                            value_width: v.width,
                        };
                        pair.differentiate(simd, &packed.block(index, row, value_row), &side, p, ds);
                        let begun = begun.mark(index);
                        pair.sum_up(simd, &mut packed.block(index, row, value_row), begun, &mut side, p, ds);
                        side.begun = true;
                    }
                    if !side.begun {
                        continue;
                    }
                    let written = std::mem::replace(&mut self.written[start / KEYS], true);
                    for (j, key) in range.enumerate() {
                        // SAFETY: these rows belong to this task. One after the other: both may be the same memory.
                        unsafe {
                            self.dk.rows.write(key, 1.0, &dk[j * row..], self.dk.add || written);
                            self.dv.rows.write(key, 1.0, &dv[j * value_row..], self.dv.add || written);
                        }
                    }
                }
                for (index, block) in self.chunk.blocks().enumerate() {
                    let packed = packed.block(index, row, value_row);
                    for ((head, query), dq) in block.columns().zip(packed.dq.chunks_exact(row)) {
                        let to = HeadRows::new(&self.dq.heads, head, first);
                        // SAFETY: a column belongs to one chunk, a chunk to one task.
                        unsafe { to.write(query, self.shape.scale, dq, self.dq.accumulate) };
                    }
                }
            },
        );
    }
}

impl Step<'_> {
    #[inline(always)]
    fn pack<S: Simd>(&self, simd: S, block: &Block, to: &mut Packed<'_>) {
        let Inputs { q, k, v, out, d_out, lse } = self.inputs;
        let (seq, columns) = (self.shape.seq, block.padded());
        let first = self.batch * seq;
        read_columns(&q, first, block, self.shape.scale, to.q_rows);
        transpose(simd, to.q_rows, columns, k.width, LOG2_E, to.q_columns);
        read_columns(&d_out, first, block, 1.0, to.d_out_rows);
        transpose(simd, to.d_out_rows, columns, v.width, 1.0, to.d_out_columns);
        // Padding columns get probability 2^(0 - inf) = 0.
        to.lse.fill(f32::INFINITY);
        to.delta.fill(0.0);
        for (c, (head, query)) in block.columns().enumerate() {
            let [a, b] = [&d_out, &out].map(|heads| HeadRows::new(heads, head, first).address(query));
            // SAFETY: both rows are `v.width` wide.
            to.delta[c] = unsafe { dot(simd, v.width, a, b) };
            // SAFETY: entry checks have seen that `lse` has this row and column.
            to.lse[c] =
                LOG2_E * unsafe { *lse.as_ptr().add((self.batch * q.count + head) * lse.stride() + query) };
        }
    }
}

/// A block of keys and values, and the gradients that this chunk gives them.
struct KeySide<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    /// Whether the gradients hold anything yet.
    begun: bool,
}

/// A block of columns meets a block of keys.
struct Pair<'a> {
    view: &'a View<'a>,
    block: &'a Block,
    seen: Scores<'a>,
    width: usize,
    value_width: usize,
}

impl Pair<'_> {
    fn trim(&self, make: fn(isize) -> Trim) -> Trim {
        self.view.trim(self.block, self.seen.keys.start, make)
    }

    /// Probabilities `p` and the gradient `ds` of the scores.
    #[inline(always)]
    fn differentiate<S: Simd>(
        &self,
        simd: S,
        packed: &Packed<'_>,
        side: &KeySide<'_>,
        p: &mut [f32],
        ds: &mut [f32],
    ) {
        let scores = (side.keys, self.width, &*packed.q_columns, &mut *p);
        let d_probabilities = (side.values, self.value_width, &*packed.d_out_columns, &mut *ds);
        for (rows, width, columns, to) in [scores, d_probabilities] {
            Product {
                m: self.seen.keys.len(),
                n: self.seen.columns,
                k: width,
                a: Left { values: rows, row: pitch(width), col: 1 },
                b: columns,
                b_row: self.seen.columns,
                c: to,
                c_row: self.seen.columns,
                start: Start::Zero,
                trim: self.trim(Trim::Columns),
            }
            .run(simd);
        }
        self.seen.differentiate(simd, p, ds, packed.lse, packed.delta);
    }

    /// Adds to the gradients of values, keys and (`begun` or not) queries.
    #[inline(always)]
    fn sum_up<S: Simd>(
        &self,
        simd: S,
        packed: &mut Packed<'_>,
        begun: bool,
        side: &mut KeySide<'_>,
        p: &[f32],
        ds: &[f32],
    ) {
        let start = |begun: bool| if begun { Start::Keep } else { Start::Zero };
        let dv = (p, self.value_width, &*packed.d_out_rows, &mut *side.dv);
        let dk = (ds, self.width, &*packed.q_rows, &mut *side.dk);
        for (weights, width, rows, to) in [dv, dk] {
            Product {
                m: self.seen.keys.len(),
                n: padded(width),
                k: self.block.len(),
                a: Left { values: weights, row: self.seen.columns, col: 1 },
                b: rows,
                b_row: pitch(width),
                c: to,
                c_row: pitch(width),
                start: start(side.begun),
                trim: self.trim(Trim::DepthFrom),
            }
            .run(simd);
        }
        Product {
            m: self.block.len(),
            n: padded(self.width),
            k: self.seen.keys.len(),
            a: Left { values: ds, row: 1, col: self.seen.columns },
            b: side.keys,
            b_row: pitch(self.width),
            c: packed.dq,
            c_row: pitch(self.width),
            start: start(begun),
            trim: self.trim(Trim::DepthTo),
        }
        .run(simd);
    }
}
