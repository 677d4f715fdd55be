//! Products on AMX tiles: operands rounded to bf16, or split into a bf16 and the bf16 of what it leaves, summed in f32.
//!
//! As in f32, every element is summed over k in an order that depends on k alone. Tile state is loaded for one
//! thread's share of one product and released after it: other users of the tiles, and other threads, are not disturbed.

pub(crate) mod blocks;
mod detect;
pub(super) mod few;
pub(super) mod gated;
mod kernel;
pub(super) mod many;
mod pack;
mod panel;

pub(super) use detect::available;

use super::{
    scratch,
    split::{Grain, Product},
    view::{Element, ViewMut},
};
use kernel::Tile;

/// Steps of k in one tile.
const KT: usize = 32;
/// Rows and columns of `out` that one kernel call makes.
const BLOCK: usize = 32;
/// Longest block of k, and values of a block of `a`, all parts: two thirds of a 48 KiB first-level cache.
const KC: usize = 256;
const A_BLOCK: usize = 1 << 14;
/// Values of `b` packed at a time: half of a 2 MiB second-level cache.
const B_WORDS: usize = 1 << 18;
/// Values of `a` packed at a time where they lie across memory; else only one block's.
const A_WORDS: usize = 1 << 17;

/// What operands become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parts {
    /// One bf16.
    One,
    /// A bf16 and the bf16 of the rest.
    Two,
    /// And the bf16 of what these leave: all 24 bits of an f32. Only beside an operand that is bf16 itself.
    Three,
}

impl Parts {
    const fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Three => 3,
        }
    }
}

/// Whether packing knows how to read the operands.
pub(super) fn takes<B: Element>(product: &Product<'_, B>) -> bool {
    let (a, b) = (&product.a, &product.b);
    (a.row_stride == 1 || a.col_stride == 1) && (b.row_stride == 1 || b.col_stride == 1)
}

pub(super) fn run<B: Element>(product: Product<'_, B>, parts: Parts) {
    debug_assert!(B::IS_BF16 || parts != Parts::Three, "three parts of both operands");
    // Values that are bf16 already are only moved.
    let b_cost = if B::IS_BF16 { 4 } else { 7 * parts.count() };
    let grain = Grain { min_work: 1 << 21, rows: BLOCK, cols: BLOCK, a_cost: 7 * parts.count(), b_cost };
    // SAFETY: called only where the processor has AMX and this process may use it.
    super::split::run(product, &grain, |product| unsafe { serial(product, parts) });
}

/// # Safety
/// AMX and AVX-512 must be usable.
unsafe fn serial<B: Element>(product: Product<'_, B>, parts: Parts) {
    let Product { out, accumulate, alpha, a, b } = product;
    let (m, n, k) = (out.rows, out.cols, a.cols);
    let b_parts = if B::IS_BF16 { Parts::One } else { parts };
    let steps = k.div_ceil(KT);
    let longest = (A_BLOCK / (BLOCK * parts.count())).min(KC) / KT;
    let kc = steps.div_ceil(steps.div_ceil(longest)) * KT;
    let nc = (B_WORDS / kc / BLOCK * BLOCK).min(n.next_multiple_of(BLOCK));
    // Rows of `a` that lie along k: a few rows of `out` stay near the core while they are summed over as much of k as
    // there is room for. Rows across memory: a block of k is taken from all of them, so that few pages are in use.
    let (span, a_words) = if a.col_stride == 1 {
        ((B_WORDS / nc / kc).clamp(1, k.div_ceil(kc)) * kc, BLOCK * kc)
    } else {
        (kc, A_WORDS)
    };
    let mc = (a_words / kc / BLOCK * BLOCK).min(m.next_multiple_of(BLOCK));
    // Two bf16 are a word: two parts take as many words as there are values.
    let words = |values: usize, parts: Parts| (values * parts.count()).div_ceil(2);
    let (b_words, a_words) = (words(nc * span, b_parts), words(mc * kc, parts));
    // SAFETY: the buffer holds the parts of nc * span and mc * kc values; packed parts stay within, tiles within the
    // views.
    scratch::with(b_words + a_words, |buffer| unsafe {
        let (b_pack, a_pack) = (buffer, buffer.add(b_words));
        kernel::configure();
        for n0 in (0..n).step_by(nc) {
            let nb = nc.min(n - n0);
            for k1 in (0..k).step_by(span) {
                let end = (k1 + span).min(k);
                let b_at = |k0: usize| b_pack.add(words((k0 - k1) * nc, b_parts));
                for k0 in (k1..end).step_by(kc) {
                    pack::pack(b.part(k0, n0, kc.min(end - k0), nb).t(), 1.0, b_parts, true, 2, b_at(k0));
                }
                for m0 in (0..m).step_by(mc) {
                    for k0 in (k1..end).step_by(kc) {
                        let kb = kc.min(end - k0);
                        let a = a.part(m0, k0, mc.min(m - m0), kb);
                        pack::pack(a, alpha, parts, false, 2, a_pack);
                        let strip = Strip {
                            // SAFETY: rows and columns of a view that this thread has alone.
                            out: out.part(m0, n0, a.rows, nb),
                            add: accumulate || k0 > 0,
                            steps: kb.div_ceil(KT),
                            a: (a_pack, parts),
                            b: (b_at(k0), b_parts),
                        };
                        strip.run();
                    }
                }
            }
        }
        kernel::release();
    });
}

/// The product of packed operands.
struct Strip<'a> {
    out: ViewMut<'a>,
    add: bool,
    steps: usize,
    a: (*const u32, Parts),
    b: (*const u32, Parts),
}

impl Strip<'_> {
    /// # Safety
    /// Tiles must be configured and the operands packed.
    unsafe fn run(&self) {
        let ((a, a_parts), (b, b_parts)) = (self.a, self.b);
        let (rows, cols, stride) = (self.out.rows, self.out.cols, self.out.row_stride);
        let at = |i: usize, j: usize| self.out.ptr.wrapping_add(i * stride + j);
        let line = self.steps * KT / 2;
        for i in (0..rows).step_by(BLOCK) {
            for j in (0..cols).step_by(BLOCK) {
                let tile = Tile {
                    rows: BLOCK.min(rows - i),
                    cols: BLOCK.min(cols - j),
                    steps: self.steps,
                    a: a.wrapping_add(i * line * a_parts.count()),
                    b: b.wrapping_add(j * line * b_parts.count()),
                    out: at(i, j),
                    out_stride: stride,
                    add: self.add,
                    next_out: if j + BLOCK < cols { at(i, j + BLOCK) } else { at(i + BLOCK, 0) },
                };
                // SAFETY: as for this function.
                unsafe { tile.run(a_parts, b_parts) };
            }
        }
    }
}
