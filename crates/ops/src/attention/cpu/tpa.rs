//! Decoding over a cache of tensor-product factors: keys and values are never materialised.
//!
//! Every token is `rank` terms, a term is a row b of channels and a factor a per head. Scores are products with the b
//! rows, as if these were keys shared by all heads, then weighted by a and summed over the terms of each token. The
//! value side mirrors that: probabilities times a weight the b rows.

use super::{
    base2,
    block::{Block, COLUMNS, Chunk, KEYS, View, key_blocks},
    forward::Outcome,
    rows::{HeadRows, PagedRows, read_columns},
    schedule::{Common, Schedule},
    scratch::{padded, pitch, with_scratch},
    softmax::Scores,
    tile::{Left, Product, Start, Trim},
    transpose::transpose,
};
use crate::attention::{Heads, TpaCached};
use pulp::{Arch, Simd, WithSimd};
use std::{f32::consts::LOG2_E, ops::Range};

/// See [`crate::attention::tpa_cached`].
pub(in crate::attention) fn tpa_cached(arch: Arch, q: Heads<'_>, cache: &TpaCached<'_>, out: Heads<'_>) {
    let (heads, width) = (q.count, q.width);
    let slopes = base2(cache.alibi);
    let common = Common {
        heads,
        kv_heads: 1,
        column: 2 * width,
        work: width * (cache.b_k.count + cache.b_v.count),
        window: None,
        slopes: slopes.as_deref(),
    };
    Schedule::new(common, cache.paged).run(width, out, |task, finish| {
        let terms = |factor: &Heads<'_>| -> Vec<PagedRows<'_>> {
            let rows = |term| HeadRows::new(factor, term, 0);
            (0..factor.count)
                .map(|term| PagedRows::new(rows(term), cache.paged.page_size, task.pages))
                .collect()
        };
        let factors = |a: &Heads<'_>, b: &Heads<'_>| Factors { rank: b.count, a: terms(a), b: terms(b) };
        arch.dispatch(Attend {
            q,
            first: task.first,
            keys: factors(&cache.a_k, &cache.b_k),
            values: factors(&cache.a_v, &cache.b_v),
            scale: cache.scale,
            view: task.view,
            chunk: &task.chunk,
            range: task.keys,
            finish,
        });
    });
}

/// The factors of keys, or of values, by term.
struct Factors<'a> {
    rank: usize,
    a: Vec<PagedRows<'a>>,
    b: Vec<PagedRows<'a>>,
}

impl Factors<'_> {
    /// Reads the b rows of `tokens`, term by term, into rows a pitch apart, and all a factors likewise.
    #[inline(always)]
    fn read(&self, tokens: &Range<usize>, a: &mut [f32], b: &mut [f32]) {
        for (rows, to) in [(&self.a, a), (&self.b, b)] {
            let size = tokens.len() * pitch(rows[0].width());
            for (rows, to) in rows.iter().zip(to.chunks_exact_mut(size)) {
                rows.read_all(tokens.clone(), to);
            }
        }
    }
}

struct Attend<'a, F> {
    q: Heads<'a>,
    /// Row of query 0.
    first: usize,
    keys: Factors<'a>,
    values: Factors<'a>,
    scale: f32,
    view: View<'a>,
    chunk: &'a Chunk,
    range: Range<usize>,
    finish: F,
}

impl<F: Fn(usize, usize, Outcome<'_>)> WithSimd for Attend<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (row, a_row) = (pitch(self.q.width), pitch(self.q.count));
        let (key_rank, value_rank) = (self.keys.rank, self.values.rank);
        let rank = key_rank.max(value_rank);
        let blocks = self.chunk.blocks().count();
        let side = COLUMNS * row;
        let lengths = [
            blocks * side,
            blocks * side,
            blocks * COLUMNS,
            blocks * COLUMNS,
            KEYS * key_rank * a_row,
            (KEYS * key_rank).max(COLUMNS) * row,
            KEYS * value_rank * a_row,
            KEYS * value_rank * row,
            KEYS * COLUMNS,
            KEYS * rank * COLUMNS,
            COLUMNS,
        ];
        with_scratch(
            lengths,
            #[inline(always)]
            |[packed, out, max, sum, a_k, b_k, a_v, b_v, scores, terms, factor]| {
                out.fill(0.0);
                max.fill(f32::NEG_INFINITY);
                sum.fill(0.0);
                for (block, packed) in self.chunk.blocks().zip(packed.chunks_exact_mut(side)) {
                    read_columns(&self.q, self.first, &block, self.scale / key_rank as f32 * LOG2_E, b_k);
                    transpose(simd, b_k, block.padded(), self.q.width, 1.0, packed);
                }
                for range in key_blocks(&self.range) {
                    self.keys.read(&range, a_k, b_k);
                    self.values.read(&range, a_v, b_v);
                    for (index, block) in self.chunk.blocks().enumerate() {
                        if !self.view.sees(&block, &range) {
                            continue;
                        }
                        let mask = self.view.mask(&block, &range);
                        let (tokens, columns) = (range.len(), block.padded());
                        Product {
                            m: key_rank * tokens,
                            n: columns,
                            k: self.q.width,
                            a: Left { values: b_k, row, col: 1 },
                            b: &packed[index * side..][..side],
                            b_row: columns,
                            c: terms,
                            c_row: columns,
                            start: Start::Zero,
                            trim: Trim::None,
                        }
                        .run(simd);
                        let weights = Weights { block: &block, tokens, a_row };
                        weights.sum(scores, terms, a_k, key_rank);
                        let state = index * COLUMNS..(index + 1) * COLUMNS;
                        Scores { keys: range.clone(), columns, mask: mask.as_ref() }.absorb(
                            simd,
                            scores,
                            &mut max[state.clone()],
                            &mut sum[state],
                            factor,
                        );
                        weights.spread(scores, terms, a_v, value_rank);
                        Product {
                            m: block.len(),
                            n: padded(self.q.width),
                            k: value_rank * tokens,
                            a: Left { values: terms, row: 1, col: columns },
                            b: b_v,
                            b_row: row,
                            c: &mut out[index * side..][..side],
                            c_row: row,
                            start: Start::Scale(factor),
                            trim: Trim::None,
                        }
                        .run(simd);
                    }
                }
                for (index, block) in self.chunk.blocks().enumerate() {
                    for (c, (head, query)) in block.columns().enumerate() {
                        let column = index * COLUMNS + c;
                        let outcome = Outcome {
                            values: &out[column * row..][..self.q.width],
                            max: max[column],
                            sum: sum[column],
                        };
                        (self.finish)(head, query, outcome);
                    }
                }
            },
        );
    }
}

/// Factors a, seen by the columns of a block.
struct Weights<'a> {
    block: &'a Block,
    tokens: usize,
    a_row: usize,
}

impl Weights<'_> {
    /// Scores of tokens: the sum over the terms of a times the term's score.
    #[inline(always)]
    fn sum(&self, scores: &mut [f32], terms: &[f32], a: &[f32], rank: usize) {
        for term in 0..rank {
            for token in 0..self.tokens {
                let factors = self.factors(term * self.tokens + token, a);
                let (scores, terms) =
                    (self.row_mut(scores, token), self.row(terms, term * self.tokens + token));
                let products = scores.iter_mut().zip(terms.iter().zip(&factors));
                if term == 0 {
                    products.for_each(|(score, (term, a))| *score = term * a);
                } else {
                    products.for_each(|(score, (term, a))| *score += term * a);
                }
            }
        }
    }

    /// Weights of terms: a over the rank times the token's weight.
    #[inline(always)]
    fn spread(&self, scores: &[f32], terms: &mut [f32], a: &[f32], rank: usize) {
        let share = 1.0 / rank as f32;
        for term in 0..rank {
            for token in 0..self.tokens {
                let factors = self.factors(term * self.tokens + token, a);
                let (scores, terms) =
                    (self.row(scores, token), self.row_mut(terms, term * self.tokens + token));
                for ((term, score), a) in terms.iter_mut().zip(scores).zip(&factors) {
                    *term = a * share * score;
                }
            }
        }
    }

    /// Row `row` of the factors, a column each; zero for padding columns.
    #[inline(always)]
    fn factors(&self, row: usize, a: &[f32]) -> [f32; COLUMNS] {
        let (heads, queries) = (&self.block.heads, self.block.queries.len());
        let a = &a[row * self.a_row..][heads.clone()];
        let mut factors = [0.0; COLUMNS];
        if queries == 1 {
            factors[..a.len()].copy_from_slice(a);
        } else {
            factors.chunks_exact_mut(queries).zip(a).for_each(|(columns, a)| columns.fill(*a));
        }
        factors
    }

    #[inline(always)]
    fn row<'b>(&self, values: &'b [f32], row: usize) -> &'b [f32] {
        &values[row * self.block.padded()..][..self.block.padded()]
    }

    #[inline(always)]
    fn row_mut<'b>(&self, values: &'b mut [f32], row: usize) -> &'b mut [f32] {
        &mut values[row * self.block.padded()..][..self.block.padded()]
    }
}
