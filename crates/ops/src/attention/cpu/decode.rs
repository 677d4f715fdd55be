//! One query, few heads per kv head: vectors of columns would be mostly empty, so vectors run along channels and keys.

use super::{
    block::{Block, KEYS, key_blocks},
    forward::{Outcome, Queries, Source},
    rows::{PlainRows, read_columns},
    scratch::{padded, pitch, with_scratch},
    softmax::exp2,
    tile::{Left, Product, Start, Trim},
};
use crate::simd::dot;
use pulp::{Simd, WithSimd};
use std::{f32::consts::LOG2_E, ops::Range};

/// Columns up to which this is faster than [`super::forward::Attend`].
pub(super) const NARROW: usize = 8;

/// Some heads of query 0 over a range of keys, all of which it sees. `finish` as in [`super::forward::Attend`].
pub(super) struct Decode<'a, F> {
    pub(super) source: Source<'a>,
    pub(super) queries: Queries<'a>,
    pub(super) heads: Range<usize>,
    pub(super) keys: Range<usize>,
    pub(super) finish: F,
}

impl<F: FnMut(usize, usize, Outcome<'_>)> WithSimd for Decode<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (width, value_width) = (self.source.keys.width(), self.source.values.width());
        let (row, value_row) = (pitch(width), pitch(value_width));
        let columns = self.heads.len();
        let mut next = key_blocks(&self.keys);
        let copied = if next.clone().all(|block| self.source.in_place(&block).is_some()) { 0 } else { KEYS };
        let lengths = [
            columns.next_multiple_of(16) * row,
            columns * value_row,
            copied * row,
            copied * value_row,
            columns * KEYS,
        ];
        with_scratch(
            lengths,
            #[inline(always)]
            |[queries, out, keys, values, scores]| {
                let Queries { heads, first, scale, view } = self.queries;
                read_columns(
                    &heads,
                    first,
                    &Block { heads: self.heads.clone(), queries: 0..1 },
                    scale * LOG2_E,
                    queries,
                );
                let (mut max, mut sum, mut factor) =
                    ([f32::NEG_INFINITY; NARROW], [0.0; NARROW], [0.0; NARROW]);
                let blocks = next.clone();
                if let Some(first) = next.next()
                    && let Some([keys, _]) = self.source.in_place(&first)
                {
                    first.for_each(|key| keys.prefetch(key));
                }
                for range in blocks {
                    let in_place = self.source.in_place(&range);
                    let after = next.next();
                    let after = after.and_then(|block| Some((self.source.in_place(&block)?[0], block)));
                    let [key_rows, value_rows] = in_place.unwrap_or_else(
                        #[inline(always)]
                        || {
                            self.source.read(&range, keys, values);
                            [PlainRows::of(keys, row, width), PlainRows::of(values, value_row, value_width)]
                                .map(|rows| rows.counted_from(range.start))
                        },
                    );
                    for (j, key) in range.clone().enumerate() {
                        // The heads of a row are far apart: the processor does not see what comes next.
                        if in_place.is_some() {
                            value_rows.prefetch(key);
                        }
                        if let Some((rows, block)) = &after
                            && block.start + j < block.end
                        {
                            rows.prefetch(block.start + j);
                        }
                        for (c, query) in queries.chunks_exact(row).take(columns).enumerate() {
                            // SAFETY: both rows are longer than that.
                            scores[c * KEYS + j] =
                                unsafe { dot(simd, padded(width), key_rows.row(key), query.as_ptr()) };
                        }
                    }
                    for (c, scores) in scores.chunks_exact_mut(KEYS).take(columns).enumerate() {
                        if let Some(slopes) = view.slopes {
                            let slope = slopes[self.heads.start + c];
                            for (score, key) in scores.iter_mut().zip(range.clone()) {
                                *score -= slope * (view.past - key) as f32;
                            }
                        }
                        // Scores beyond the range weigh nothing: all loops run over whole vectors.
                        scores[range.len()..].fill(f32::NEG_INFINITY);
                        factor[c] = absorb(simd, scores, &mut max[c], &mut sum[c]);
                    }
                    let (b, b_row) = value_rows.slice(&range);
                    Product {
                        m: columns,
                        n: padded(value_width),
                        k: range.len(),
                        a: Left { values: scores, row: KEYS, col: 1 },
                        b,
                        b_row,
                        c: out,
                        c_row: value_row,
                        start: if range.start == self.keys.start {
                            Start::Zero
                        } else {
                            Start::Scale(&factor)
                        },
                        trim: Trim::None,
                    }
                    .run(simd);
                }
                if self.keys.is_empty() {
                    out.fill(0.0);
                }
                for (c, head) in self.heads.clone().enumerate() {
                    let values = &out[c * value_row..][..value_width];
                    (self.finish)(head, 0, Outcome { values, max: max[c], sum: sum[c] });
                }
            },
        );
    }
}

/// One step of online softmax for one column; by how much what was summed up before shrinks.
#[inline(always)]
fn absorb<S: Simd>(simd: S, scores: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
    let vectors = S::as_mut_simd_f32s(scores).0;
    let mut top = simd.splat_f32s(*max);
    for score in vectors.iter() {
        top = simd.max_f32s(top, *score);
    }
    let new = simd.reduce_max_f32s(top);
    let base = simd.splat_f32s(new);
    let mut total = simd.splat_f32s(0.0);
    for score in vectors {
        *score = exp2(simd, simd.sub_f32s(*score, base));
        total = simd.add_f32s(total, *score);
    }
    let factor = (*max - new).exp2();
    (*max, *sum) = (new, *sum * factor + simd.reduce_sum_f32s(total));
    factor
}
