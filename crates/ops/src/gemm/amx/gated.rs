//! A gated MLP: what lies between its two products never becomes f32 in memory.

use super::{
    KT, Parts, kernel,
    many::{self, Packed},
    pack,
    panel::{BLOCK, Panel, WORDS, Walk},
};
use crate::gemm::{
    Gate, Target,
    scratch::{self, Slot},
    view::{View, ViewMut},
};
use half::bf16;
use pulp::x86::V4;
use std::{arch::x86_64::*, marker::PhantomData};

/// The weights of a gated MLP.
#[derive(Clone, Copy)]
pub(in crate::gemm) struct Weights<'a> {
    /// [width, in].
    pub(in crate::gemm) gate: View<'a, bf16>,
    /// [width, in].
    pub(in crate::gemm) up: View<'a, bf16>,
    /// [out, width].
    pub(in crate::gemm) down: View<'a, bf16>,
}

/// Gates, and ups beside them, of a panel.
const HALF: usize = BLOCK / 2;
/// Panels whose sums are kept where k has several spans.
const GROUP: usize = 8;

/// `out = gated(x gate^T, x up^T) down^T`, on processors with the instructions that `simd` stands for.
pub(in crate::gemm) fn run<G: Gate>(
    simd: V4,
    x: View<'_>,
    weights: Weights<'_>,
    out: ViewMut<'_>,
    parts: Parts,
) {
    let width = weights.gate.rows;
    let chunk = many::chunk_rows(x.rows, x.cols.max(width), parts);
    let x_words = many::packed_words(chunk, x.cols, parts);
    let targets = [Target { weight: weights.down, out, accumulate: false }];
    scratch::with(x_words + many::packed_words(chunk, width, parts), |packed| {
        let hidden = packed.wrapping_add(x_words);
        for first in (0..x.rows).step_by(chunk) {
            let x = x.part(first, 0, chunk.min(x.rows - first), x.cols);
            many::pack_rows(x, 1.0, parts, packed);
            let x = Packed { words: packed, rows: x.rows, k: x.cols, parts };
            let rows = x.rows;
            Hidden::<G> { x, weights, to: hidden, simd, gate: PhantomData }.run();
            many::multiply(&Packed { words: hidden, rows, k: width, parts }, &targets, first);
        }
    });
}

/// The first product and the activation.
struct Hidden<'a, G> {
    x: Packed,
    weights: Weights<'a>,
    /// Where values go, packed as rows of the next product.
    to: *mut u32,
    simd: V4,
    gate: PhantomData<G>,
}

// SAFETY: tasks write disjoint halves of lines.
unsafe impl<G> Sync for Hidden<'_, G> {}

impl<G: Gate> Hidden<'_, G> {
    fn run(&self) {
        let (x, width) = (&self.x, self.weights.gate.rows);
        let (spans, span) = x.spans();
        let steps = x.k.div_ceil(KT);
        // An even number: the last step of the next product is whole.
        let panels = width.div_ceil(KT) * 2;
        x.share(panels, |range, rows| {
            let group = if spans > 1 { GROUP } else { 1 };
            let kept = if spans > 1 { rows.len().next_multiple_of(BLOCK) } else { 2 * BLOCK };
            // SAFETY: AMX and AVX-512 are usable where this is called; the buffer holds a panel and the sums.
            scratch::with_slot(Slot::Task, span * WORDS + group * kept * BLOCK, |packed| unsafe {
                let sums = packed.add(span * WORDS).cast::<f32>();
                kernel::configure();
                let groups = range.clone().step_by(group).map(|start| start..(start + group).min(range.end));
                let all = groups.flat_map(|group| {
                    let first = group.start;
                    (0..spans).flat_map(move |number| {
                        group.clone().map(move |index| (number * span, index, index - first))
                    })
                });
                let mut next = all.clone().skip(1);
                // Sums leave the tiles while the next ones are computed.
                let mut pending: Option<(*const f32, *mut u32)> = None;
                for (start, index, place) in all {
                    self.panel(index, start, span).pack(packed);
                    let after = next.next().map(|(start, index, _)| self.panel(index, start, span));
                    let end = (start + span).min(steps);
                    if spans > 1 && start == 0 && place == 0 {
                        self.activate(pending.take());
                    }
                    for row in rows.clone().step_by(BLOCK) {
                        let number = (row - rows.start) / BLOCK;
                        if let Some(panel) = &after {
                            panel.prefetch(number, rows.len().div_ceil(BLOCK));
                        }
                        // One block's sums, or the other's, or all of a group.
                        let block = match (spans, &pending) {
                            (1, Some((before, _))) if *before == sums => 1,
                            (1, _) => 0,
                            _ => place * kept / BLOCK + number,
                        };
                        let sums = sums.add(block * BLOCK * BLOCK);
                        let walk = Walk {
                            a: x.block(row, start),
                            panel: packed,
                            steps: end - start,
                            out: sums,
                            out_stride: BLOCK,
                            add: start > 0,
                            two: true,
                            next_out: sums,
                            next_stride: BLOCK,
                        };
                        walk.run(x.parts);
                        if end == steps {
                            self.activate(pending.replace((sums, self.place(row, index))));
                        }
                    }
                }
                self.activate(pending);
                kernel::release();
            });
        });
    }

    /// Activates a block of sums and writes it to its place, if there is one.
    ///
    /// # Safety
    /// Both must be there, and AVX-512 with bf16 be usable.
    unsafe fn activate(&self, block: Option<(*const f32, *mut u32)>) {
        let Some((sums, to)) = block else { return };
        // SAFETY: as for this function.
        unsafe {
            match self.x.parts {
                Parts::One => activate::<G, 1>(self.simd, sums, to),
                Parts::Two => activate::<G, 2>(self.simd, sums, to),
                Parts::Three => activate::<G, 3>(self.simd, sums, to),
            }
        }
    }

    /// Rows of gates and ups of panel `index` from step `start` on, `span` steps of them.
    fn panel(&self, index: usize, start: usize, span: usize) -> Panel<'_> {
        let Weights { gate, up, .. } = self.weights;
        let line = (index * HALF).min(gate.rows);
        let (count, k) = (HALF.min(gate.rows - line), (span * KT).min(gate.cols - start * KT));
        Panel { halves: [gate, up].map(|weight| weight.part(line, start * KT, count, k)) }
    }

    /// Where the values of panel `index` for the block of rows from `row` on go.
    fn place(&self, row: usize, index: usize) -> *mut u32 {
        let steps = self.weights.gate.rows.div_ceil(KT);
        let block = (row / BLOCK * steps + index / 2) * self.x.parts.count() * WORDS;
        self.to.wrapping_add(block + index % 2 * HALF / 2)
    }
}

/// Activates 32 rows of sums and writes them as half of the lines of a step.
///
/// # Safety
/// `sums` must be a block, `to` have room for its parts, AVX-512 with bf16 be usable.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512cd,avx512dq,avx512bf16,avx2,fma,bmi1,bmi2,lzcnt,popcnt"
)]
unsafe fn activate<G: Gate, const P: usize>(simd: V4, sums: *const f32, to: *mut u32) {
    for row in (0..BLOCK).step_by(2) {
        let mut hidden = [_mm512_setzero_ps(); 2];
        for (r, hidden) in hidden.iter_mut().enumerate() {
            let sums = sums.wrapping_add((row + r) * BLOCK);
            // SAFETY: a row is two vectors; vectors of 16 floats are alike, whoever named them.
            *hidden = unsafe {
                let (gate, up) = (_mm512_load_ps(sums), _mm512_load_ps(sums.add(HALF)));
                std::mem::transmute::<pulp::f32x16, __m512>(G::gated(
                    simd,
                    std::mem::transmute::<__m512, pulp::f32x16>(gate),
                    std::mem::transmute::<__m512, pulp::f32x16>(up),
                ))
            };
        }
        for (part, values) in pack::split::<P>(hidden[0], hidden[1]).into_iter().enumerate() {
            let to = to.wrapping_add(part * WORDS + row * KT / 2);
            // SAFETY: two tiles of 16 lines a part.
            unsafe {
                _mm256_store_si256(to.cast(), _mm512_castsi512_si256(values));
                _mm256_store_si256(to.add(KT / 2).cast(), _mm512_extracti64x4_epi64::<1>(values));
            }
        }
    }
}
