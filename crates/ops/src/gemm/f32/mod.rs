//! Products in f32: packed panels of `b`, rows of `a`, tiles of `out` in registers.
//!
//! Every element is one chain of fused multiply-adds over k in blocks of a length that depends on k alone, whatever
//! tile computes it: splits and tile shapes do not change a bit of the result.

mod kernel;
mod pack;

use super::{
    scratch,
    split::{Grain, Product},
    view::{Element, View, ViewMut},
};
use kernel::{MR, Tile};
use pulp::{Arch, Simd, WithSimd};

/// Longest block of k where rows of `a` are read in place.
const KC: usize = 512;
/// Longest block of k where `a` is packed: a panel of `b` is 32 KiB.
const KC_PACKED: usize = 128;
/// Words of `b` packed at a time: half of a 2 MiB second-level cache.
const B_WORDS: usize = 1 << 18;
/// Rows of `a` packed at a time.
const MC: usize = 64 * MR;

pub(super) fn run<B: Element>(arch: Arch, product: Product<'_, B>) {
    let grain = Grain {
        min_work: 1 << 19,
        rows: MR,
        cols: 64,
        a_cost: if product.a.col_stride == 1 { 1 } else { 4 },
        b_cost: 6,
    };
    super::split::run(product, &grain, |product| arch.dispatch(Serial(product)));
}

struct Serial<'a, B>(Product<'a, B>);

impl<B: Element> WithSimd for Serial<'_, B> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Product { out, accumulate, alpha, a, b } = self.0;
        let (m, n, k) = (out.rows, out.cols, a.cols);
        let lanes = S::F32_LANES;
        // Four vectors a panel row need 24 accumulators: with 16 registers take two.
        let width = lanes * if S::REGISTER_COUNT >= 32 { 4 } else { 2 };
        let pack_a = a.col_stride != 1;
        let kc = k.div_ceil(k.div_ceil(if pack_a { KC_PACKED } else { KC }).max(1)).max(1);
        let nc = (B_WORDS / kc / width * width).max(width).min(n.next_multiple_of(lanes));
        let a_words = if pack_a { MC.min(m).div_ceil(MR) * pack::a_panel(kc) } else { 0 };
        scratch::with(nc * kc + a_words, |buffer| {
            let b_pack = buffer.cast::<f32>();
            for n0 in (0..n).step_by(nc) {
                let nb = nc.min(n - n0);
                for k0 in (0..k.max(1)).step_by(kc) {
                    let kb = kc.min(k - k0);
                    // SAFETY: the buffer holds nc * kc + a_words words.
                    unsafe {
                        pack::pack_b::<S, B>(b.part(k0, n0, kb, nb), width, b_pack);
                        let strip = Strip {
                            // SAFETY: columns of a view that this thread has alone.
                            out: out.part(0, n0, m, nb),
                            add: accumulate || k0 > 0,
                            alpha,
                            a: a.part(0, k0, m, kb),
                            b: b_pack,
                            width,
                        };
                        if pack_a {
                            strip.packed(simd, b_pack.add(nc * kc));
                        } else {
                            strip.unpacked(simd);
                        }
                    }
                }
            }
        });
    }
}

/// The product of a block of columns of `a` with packed panels of `b`.
struct Strip<'a> {
    out: ViewMut<'a>,
    add: bool,
    alpha: f32,
    a: View<'a>,
    b: *const f32,
    width: usize,
}

impl Strip<'_> {
    /// Tiles row by row: a few rows of `a` stay in the first-level cache, panels stream from the second.
    ///
    /// # Safety
    /// `b` must hold the panels.
    #[inline(always)]
    unsafe fn unpacked<S: Simd>(&self, simd: S) {
        let (m, n) = (self.out.rows, self.out.cols);
        for i in (0..m).step_by(MR) {
            for j in (0..n).step_by(self.width) {
                // SAFETY: as for this function; rows from i on exist.
                unsafe { self.tile(i, j, self.a.ptr.add(i * self.a.row_stride), false).run(simd) };
            }
        }
    }

    /// Tiles panel by panel: one panel stays in the first-level cache, packed rows of `a` stream from the second.
    ///
    /// # Safety
    /// `b` must hold the panels, `a_pack` must have room for MC rows of `a`.
    #[inline(always)]
    unsafe fn packed<S: Simd>(&self, simd: S, a_pack: *mut f32) {
        let (m, n, k) = (self.out.rows, self.out.cols, self.a.cols);
        for m0 in (0..m).step_by(MC) {
            let mb = MC.min(m - m0);
            // SAFETY: as for this function.
            unsafe {
                pack::pack_a(self.a.part(m0, 0, mb, k), a_pack);
                for j in (0..n).step_by(self.width) {
                    for i in (0..mb).step_by(MR) {
                        let rows = a_pack.add(i / MR * pack::a_panel(k));
                        self.tile(m0 + i, j, rows, true).run(simd);
                    }
                }
            }
        }
    }

    /// The tile at row `i` and column `j`.
    #[inline(always)]
    fn tile(&self, i: usize, j: usize, a: *const f32, a_packed: bool) -> Tile {
        Tile {
            rows: MR.min(self.out.rows - i),
            cols: self.width.min(self.out.cols - j),
            k: self.a.cols,
            a,
            a_stride: self.a.row_stride,
            a_packed,
            b: self.b.wrapping_add(j * self.a.cols),
            out: self.out.ptr.wrapping_add(i * self.out.row_stride + j),
            out_stride: self.out.row_stride,
            add: self.add,
            alpha: self.alpha,
        }
    }
}
