//! One pass over memory; the angles of a row stay in L1 for all its heads.

use super::{Heads, Pairing, Positions, RopeTable};
use crate::simd::{Kernel, Rows, block_rows, for_lanes, launch};
use keyfold_tensor::Tensor;
use pulp::Simd;
use std::{mem::transmute_copy, ops::Range};

pub(super) fn apply(
    x: &Tensor,
    out: &mut Tensor,
    heads: Heads,
    table: &RopeTable,
    positions: Positions<'_>,
    inverse: bool,
) {
    let sign = if inverse { -1.0 } else { 1.0 };
    let rotation = Rotation { x: Rows::of(x), out: Rows::of(out), heads, table, positions, sign };
    let block = block_rows(heads.count * table.width());
    match table.pairing() {
        Pairing::HalfSplit => launch(x.rows(), block, &HalfSplit(rotation)),
        Pairing::Interleaved => launch(x.rows(), block, &Interleaved(rotation)),
    }
}

struct Rotation<'a> {
    x: Rows,
    out: Rows,
    heads: Heads,
    table: &'a RopeTable,
    positions: Positions<'a>,
    /// Of the angle.
    sign: f32,
}

struct HalfSplit<'a>(Rotation<'a>);

impl Kernel for HalfSplit<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        let Rotation { x, out, heads, table, positions, sign } = self.0;
        let (half, sign) = (table.width() / 2, simd.splat_f32s(sign));
        for row in rows {
            let position = positions.at(row);
            let (cos, sin) = (table.cos(position).as_ptr(), table.sin(position).as_ptr());
            for head in 0..heads.count {
                let at = head * heads.stride + heads.offset;
                // SAFETY: the mod's asserts: the head lies within the row, which both have.
                let (x, out) = unsafe { (x.row(row).add(at), out.row(row).add(at)) };
                for_lanes(
                    simd,
                    half,
                    #[inline(always)]
                    // SAFETY: as above; both halves are read before they are written.
                    |lanes| unsafe {
                        let (a, b) = (lanes.load(simd, x), lanes.load(simd, x.add(half)));
                        let (c, s) = (lanes.load(simd, cos), simd.mul_f32s(sign, lanes.load(simd, sin)));
                        lanes.store(simd, out, simd.negate_mul_add_e_f32s(b, s, simd.mul_f32s(a, c)));
                        lanes.store(simd, out.add(half), simd.mul_add_e_f32s(a, s, simd.mul_f32s(b, c)));
                    },
                );
            }
        }
    }
}

struct Interleaved<'a>(Rotation<'a>);

impl Kernel for Interleaved<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        let Rotation { x, out, heads, table, positions, sign } = self.0;
        if S::F32_LANES == 1 {
            return self.pair_by_pair(rows);
        }
        let sign = simd.splat_f32s(sign);
        for row in rows {
            let (cos, sin) = table.per_channel(positions.at(row));
            let (cos, sin) = (cos.as_ptr(), sin.as_ptr());
            for head in 0..heads.count {
                let at = head * heads.stride + heads.offset;
                // SAFETY: the mod's asserts: the head lies within the row, which both have.
                let (x, out) = unsafe { (x.row(row).add(at), out.row(row).add(at)) };
                for_lanes(
                    simd,
                    table.width(),
                    #[inline(always)]
                    // SAFETY: as above; lanes hold whole pairs, since the width and the number of lanes are even. A vector of
                    // complex numbers is as large as one of f32 (not so without vectors, which does not come here).
                    |lanes| unsafe {
                        let x = lanes.load(simd, x);
                        let swapped = simd.swap_re_im_c32s(transmute_copy(&x));
                        let partner: S::f32s = transmute_copy(&swapped);
                        let (c, s) = (lanes.load(simd, cos), simd.mul_f32s(sign, lanes.load(simd, sin)));
                        lanes.store(simd, out, simd.mul_add_e_f32s(partner, s, simd.mul_f32s(x, c)));
                    },
                );
            }
        }
    }
}

impl Interleaved<'_> {
    /// For machines without vectors, where a lane is half a pair.
    fn pair_by_pair(&self, rows: Range<usize>) {
        let Rotation { x, out, heads, table, positions, sign } = self.0;
        for row in rows {
            let position = positions.at(row);
            for head in 0..heads.count {
                for (pair, (c, s)) in table.cos(position).iter().zip(table.sin(position)).enumerate() {
                    let at = head * heads.stride + heads.offset + 2 * pair;
                    // SAFETY: the mod's asserts: the head lies within the row, which both have.
                    unsafe {
                        let (x, out, s) = (x.row(row).add(at), out.row(row).add(at), s * sign);
                        let (a, b) = (*x, *x.add(1));
                        *out = a * c - b * s;
                        *out.add(1) = b * c + a * s;
                    }
                }
            }
        }
    }
}
