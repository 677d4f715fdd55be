//! Forward: blockwise attention with online softmax, for whole sequences and for queries over a cache.

use super::{
    block::{Begun, Block, COLUMNS, Chunk, KEYS, View, key_blocks},
    rows::{PagedRows, PlainRows, read_columns},
    scratch::{padded, pitch, with_scratch},
    softmax::Scores,
    tile::{Left, Product, Start, Trim},
    transpose::transpose,
};
use crate::{
    attention::Heads,
    rope::{Pairing, RopeTable},
};
use pulp::{Simd, WithSimd};
use std::{
    f32::consts::{LN_2, LOG2_E},
    ops::Range,
};

/// The keys and values of one kv head.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) keys: PagedRows<'a>,
    pub(super) values: PagedRows<'a>,
    /// Rotates the keys, but not the values, as they are read.
    pub(super) rotate: Option<&'a RopeTable>,
}

impl Source<'_> {
    /// Keys and values of `tokens`, which are not none, if they can be used where they lie.
    #[inline(always)]
    pub(super) fn in_place(&self, tokens: &Range<usize>) -> Option<[PlainRows; 2]> {
        if self.rotate.is_some() {
            return None;
        }
        Some([self.keys.plain(tokens)?, self.values.plain(tokens)?])
    }

    #[inline(always)]
    pub(super) fn read(&self, rows: &Range<usize>, keys: &mut [f32], values: &mut [f32]) {
        self.keys.read_all(rows.clone(), keys);
        self.values.read_all(rows.clone(), values);
        let Some(table) = self.rotate else { return };
        let width = self.keys.width();
        for (position, key) in rows.clone().zip(keys.chunks_exact_mut(pitch(width))) {
            let turn = table.cos(position).iter().zip(table.sin(position));
            match table.pairing() {
                Pairing::HalfSplit => {
                    let (left, right) = key[..width].split_at_mut(width / 2);
                    for ((x, y), (cos, sin)) in left.iter_mut().zip(right).zip(turn) {
                        (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
                    }
                }
                Pairing::Interleaved => {
                    for (pair, (cos, sin)) in key[..width].chunks_exact_mut(2).zip(turn) {
                        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin);
                    }
                }
            }
        }
    }
}

/// The queries of one batch row.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    pub(super) heads: Heads<'a>,
    /// Token row of query 0.
    pub(super) first: usize,
    pub(super) scale: f32,
    pub(super) view: View<'a>,
}

/// One column's result: `values` is the sum of `2^(score - max) * value` over the keys, `sum` that of the weights.
pub(super) struct Outcome<'a> {
    pub(super) values: &'a [f32],
    pub(super) max: f32,
    pub(super) sum: f32,
}

impl Outcome<'_> {
    /// Natural logarithm of the sum of the exponentials of all scores.
    #[inline(always)]
    pub(super) fn log_sum_exp(&self) -> f32 {
        self.max * LN_2 + self.sum.ln()
    }
}

/// A chunk of columns over a range of keys. `finish` is called with head, query and outcome of every column.
pub(super) struct Attend<'a, F> {
    pub(super) source: Source<'a>,
    pub(super) queries: Queries<'a>,
    pub(super) chunk: &'a Chunk,
    pub(super) keys: Range<usize>,
    pub(super) finish: F,
}

impl<F: FnMut(usize, usize, Outcome<'_>)> WithSimd for Attend<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (width, value_width) = (self.source.keys.width(), self.source.values.width());
        let (side, value_side) = (COLUMNS * pitch(width), COLUMNS * pitch(value_width));
        let blocks = self.chunk.blocks().count();
        let lengths = [
            blocks * side,
            blocks * value_side,
            blocks * COLUMNS,
            blocks * COLUMNS,
            COLUMNS.max(KEYS) * pitch(width),
            KEYS * pitch(value_width),
            KEYS * COLUMNS,
            COLUMNS,
        ];
        with_scratch(
            lengths,
            #[inline(always)]
            |[packed, out, max, sum, keys, values, scores, factor]| {
                for (block, packed) in self.chunk.blocks().zip(packed.chunks_exact_mut(side)) {
                    self.pack(simd, &block, keys, packed);
                }
                max.fill(f32::NEG_INFINITY);
                sum.fill(0.0);
                let mut begun = Begun::default();
                for range in key_blocks(&self.keys) {
                    self.source.read(&range, keys, values);
                    for (index, block) in self.chunk.blocks().enumerate() {
                        if !self.queries.view.sees(&block, &range) {
                            continue;
                        }
                        let mask = self.queries.view.mask(&block, &range);
                        let columns = index * COLUMNS..(index + 1) * COLUMNS;
                        let sums = Sums {
                            begun: begun.mark(index),
                            out: &mut out[index * value_side..][..value_side],
                            max: &mut max[columns.clone()],
                            sum: &mut sum[columns],
                            factor,
                        };
                        let pair = Pair {
                            view: &self.queries.view,
                            block: &block,
                            seen: Scores {
                                keys: range.clone(),
                                columns: block.padded(),
                                mask: mask.as_ref(),
                            },
                            width,
                            value_width,
                        };
                        let packed = &packed[index * side..][..side];
                        pair.score(simd, keys, packed, scores);
                        pair.sum_up(simd, scores, values, sums);
                    }
                }
                for (index, block) in self.chunk.blocks().enumerate() {
                    let out = &mut out[index * value_side..][..value_side];
                    if !begun.has(index) {
                        out.fill(0.0);
                    }
                    for (c, (head, query)) in block.columns().enumerate() {
                        let values = &out[c * pitch(value_width)..][..value_width];
                        let column = index * COLUMNS + c;
                        (self.finish)(head, query, Outcome { values, max: max[column], sum: sum[column] });
                    }
                }
            },
        );
    }
}

impl<F> Attend<'_, F> {
    /// Packs the queries of `block` as columns.
    #[inline(always)]
    fn pack<S: Simd>(&self, simd: S, block: &Block, rows: &mut [f32], to: &mut [f32]) {
        let Queries { heads, first, scale, .. } = &self.queries;
        read_columns(heads, *first, block, scale * LOG2_E, rows);
        transpose(simd, rows, block.padded(), heads.width, 1.0, to);
    }
}

/// What a block of columns has summed up over the keys so far.
struct Sums<'a> {
    /// Whether `out` holds anything yet.
    begun: bool,
    out: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
    /// Scratch.
    factor: &'a mut [f32],
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
    #[inline(always)]
    fn score<S: Simd>(&self, simd: S, keys: &[f32], packed: &[f32], scores: &mut [f32]) {
        Product {
            m: self.seen.keys.len(),
            n: self.seen.columns,
            k: self.width,
            a: Left { values: keys, row: pitch(self.width), col: 1 },
            b: packed,
            b_row: self.seen.columns,
            c: scores,
            c_row: self.seen.columns,
            start: Start::Zero,
            trim: self.view.trim(self.block, self.seen.keys.start, Trim::Columns),
        }
        .run(simd);
    }

    #[inline(always)]
    fn sum_up<S: Simd>(&self, simd: S, scores: &mut [f32], values: &[f32], sums: Sums<'_>) {
        self.seen.absorb(simd, scores, sums.max, sums.sum, sums.factor);
        Product {
            m: self.block.len(),
            n: padded(self.value_width),
            k: self.seen.keys.len(),
            a: Left { values: scores, row: 1, col: self.seen.columns },
            b: values,
            b_row: pitch(self.value_width),
            c: sums.out,
            c_row: pitch(self.value_width),
            start: if sums.begun { Start::Scale(sums.factor) } else { Start::Zero },
            trim: self.view.trim(self.block, self.seen.keys.start, Trim::DepthTo),
        }
        .run(simd);
    }
}
