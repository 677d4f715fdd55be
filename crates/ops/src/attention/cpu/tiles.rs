//! Forward on matrix tiles (AMX), where products of bf16 were asked for: queries, keys, values and the weights of the
//! softmax are rounded to bf16, sums and the softmax are f32.
//!
//! Scores lie keys down, columns across, as in [`super::forward`]. The weighted sum is computed transposed, channels down:
//! then the weights are a right operand, which takes its rows in pairs, and nothing of a block of scores is transposed.

use super::{
    block::{Begun, Block, COLUMNS, KEYS, key_blocks},
    forward::{Attend, Outcome},
    rows::read_columns,
    scratch::{pitch, with_scratch},
    softmax::Scores,
    transpose::transpose,
};
use crate::gemm::{
    View,
    blocks::{BLOCK, STEP, Tiles, WORDS, words},
};
use pulp::{NullaryFnOnce, Simd, x86::V4};
use std::{f32::consts::LOG2_E, ops::Range};

/// The tiles, where there are any and a sequence of `queries` new tokens is worth packing.
pub(super) fn worth(queries: usize) -> Option<Tiles> {
    if queries >= BLOCK { Tiles::new() } else { None }
}

/// Runs `attend` on `tiles`.
pub(super) fn run<F: FnMut(usize, usize, Outcome<'_>)>(attend: Attend<'_, F>, tiles: &Tiles) {
    tiles.simd().vectorize(OnTiles { attend, tiles });
}

struct OnTiles<'a, 'b, F> {
    attend: Attend<'a, F>,
    tiles: &'b Tiles,
}

impl<F: FnMut(usize, usize, Outcome<'_>)> NullaryFnOnce for OnTiles<'_, '_, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { mut attend, tiles } = self;
        let simd = tiles.simd();
        let (width, value_width) = (attend.source.keys.width(), attend.source.values.width());
        let (row, value_row) = (pitch(width), pitch(value_width));
        let channels = value_width.next_multiple_of(BLOCK);
        let (side, value_side) = (words(COLUMNS, width), channels * COLUMNS);
        let blocks = attend.chunk.blocks().count();
        let lengths = [
            blocks * side,
            blocks * value_side,
            blocks * COLUMNS,
            blocks * COLUMNS,
            COLUMNS.max(KEYS) * row,
            KEYS * value_row,
            words(KEYS, width),
            words(channels, KEYS),
            (KEYS * COLUMNS).max(value_side),
            words(COLUMNS, KEYS),
            COLUMNS,
        ];
        with_scratch(
            lengths,
            #[inline(always)]
            |[packed, out, max, sum, keys, values, key_tiles, value_tiles, scores, weights, factor]| {
                for (block, packed) in attend.chunk.blocks().zip(packed.chunks_exact_mut(side)) {
                    let queries = &attend.queries;
                    read_columns(&queries.heads, queries.first, &block, queries.scale * LOG2_E, keys);
                    tiles.pack_right(lines(keys, block.len(), width, row), 1.0, packed);
                }
                max.fill(f32::NEG_INFINITY);
                sum.fill(0.0);
                let mut begun = Begun::default();
                for range in key_blocks(&attend.keys) {
                    attend.source.read(&range, keys, values);
                    tiles.pack_left(lines(keys, range.len(), width, row), key_tiles);
                    tiles.pack_left(lines(values, range.len(), value_width, value_row).t(), value_tiles);
                    for (index, block) in attend.chunk.blocks().enumerate() {
                        let view = &attend.queries.view;
                        if !view.sees(&block, &range) {
                            continue;
                        }
                        let mask = view.mask(&block, &range);
                        let columns = block.len().next_multiple_of(BLOCK);
                        let seen = seen(view.past, &block, &range);
                        let pair = Pair { tiles, range: range.clone(), columns, channels, seen };
                        pair.score(key_tiles, &packed[index * side..][..side], width, scores);
                        let at = index * COLUMNS..(index + 1) * COLUMNS;
                        let seen = Scores { keys: range.clone(), columns, mask: mask.as_ref() };
                        seen.absorb(simd, scores, &mut max[at.clone()], &mut sum[at], factor);
                        tiles.pack_columns(scores, range.len(), columns, weights);
                        let out = &mut out[index * value_side..][..value_side];
                        let started = begun.mark(index);
                        if started {
                            shrink(simd, &mut out[..channels * columns], columns, factor);
                        }
                        pair.sum_up(value_tiles, weights, out, started);
                    }
                }
                for (index, block) in attend.chunk.blocks().enumerate() {
                    let out = &mut out[index * value_side..][..value_side];
                    let columns = block.len().next_multiple_of(BLOCK);
                    if begun.has(index) {
                        transpose(simd, out, channels, columns, 1.0, scores);
                    } else {
                        scores[..channels * columns].fill(0.0);
                    }
                    for (c, (head, query)) in block.columns().enumerate() {
                        let values = &scores[c * channels..][..value_width];
                        let column = index * COLUMNS + c;
                        (attend.finish)(head, query, Outcome { values, max: max[column], sum: sum[column] });
                    }
                }
            },
        );
    }
}

/// `count` rows of `width` values.
fn lines(rows: &[f32], count: usize, width: usize, stride: usize) -> View<'_> {
    assert!(count == 0 || (count - 1) * stride + width <= rows.len(), "attention: rows to pack");
    // SAFETY: the assert.
    unsafe { View::new(rows.as_ptr(), count, width, stride, 1) }
}

/// How many of `keys` any of 32 columns from each multiple of 32 on sees, at most.
fn seen(past: usize, block: &Block, keys: &Range<usize>) -> [usize; COLUMNS / BLOCK] {
    let mut last = [0; COLUMNS / BLOCK];
    if block.heads.len() > 1 {
        last.fill(past + block.queries.end);
    } else {
        for (half, last) in last.iter_mut().enumerate() {
            *last = past + (block.queries.start + (half + 1) * BLOCK).min(block.queries.end);
        }
    }
    last.map(|last| last.saturating_sub(keys.start).min(keys.len()))
}

/// A block of columns meets a block of keys.
struct Pair<'a> {
    tiles: &'a Tiles,
    range: Range<usize>,
    /// Whole blocks; from one row of scores, or of transposed sums, to the next.
    columns: usize,
    /// Of values, whole blocks.
    channels: usize,
    seen: [usize; COLUMNS / BLOCK],
}

impl Pair<'_> {
    /// The scores that any column sees, at least.
    fn score(&self, keys: &[f32], packed: &[f32], width: usize, scores: &mut [f32]) {
        let steps = width.div_ceil(STEP);
        for key in (0..self.range.len()).step_by(BLOCK) {
            for column in (0..self.columns).step_by(BLOCK).filter(|column| key < self.seen[column / BLOCK]) {
                let (a, b) =
                    (&keys[key / BLOCK * steps * WORDS..], &packed[column / BLOCK * steps * WORDS..]);
                let out = &mut scores[key * self.columns + column..];
                self.tiles.multiply(a, b, steps, out, self.columns, false);
            }
        }
    }

    /// Adds the values, weighted, to `out`, which is [channels, columns].
    fn sum_up(&self, values: &[f32], weights: &[f32], out: &mut [f32], started: bool) {
        let steps = self.range.len().div_ceil(STEP);
        let blocks = out.chunks_exact_mut(BLOCK * self.columns).take(self.channels / BLOCK);
        for (number, out) in blocks.enumerate() {
            for column in (0..self.columns).step_by(BLOCK) {
                let (a, b) = (&values[number * steps * WORDS..], &weights[column / BLOCK * steps * WORDS..]);
                // At least one step, so that what is not added to is written.
                let seen = self.seen[column / BLOCK].div_ceil(STEP).max(1);
                self.tiles.multiply(a, b, seen, &mut out[column..], self.columns, started);
            }
        }
    }
}

/// Multiplies every column by its factor, unless all are 1.
#[inline(always)]
fn shrink(simd: V4, out: &mut [f32], columns: usize, factor: &[f32]) {
    if factor[..columns].iter().all(|factor| *factor == 1.0) {
        return;
    }
    let factor = V4::as_simd_f32s(&factor[..columns]).0;
    for row in out.chunks_exact_mut(columns) {
        for (value, factor) in V4::as_mut_simd_f32s(row).0.iter_mut().zip(factor) {
            *value = simd.mul_f32s(*value, *factor);
        }
    }
}
