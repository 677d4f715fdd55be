//! One pass over memory; the sigmoid is recomputed in the backward rather than kept.

use crate::simd::{Kernel, Rows, block_rows, for_lanes, launch, sigmoid};
use keyfold_tensor::Tensor;
use pulp::Simd;
use std::ops::Range;

pub(super) fn forward(gate_up: &Tensor, out: &mut Tensor) {
    let kernel = Forward { gate_up: Rows::of(gate_up), out: Rows::of(out), width: out.cols() };
    launch(out.rows(), block_rows(out.cols()), &kernel);
}

pub(super) fn backward(gate_up: &Tensor, d_out: &Tensor, d_gate_up: &mut Tensor) {
    let kernel = Backward {
        gate_up: Rows::of(gate_up),
        d_out: Rows::of(d_out),
        d_gate_up: Rows::of(d_gate_up),
        width: d_out.cols(),
    };
    launch(d_out.rows(), block_rows(d_out.cols()), &kernel);
}

struct Forward {
    gate_up: Rows,
    out: Rows,
    width: usize,
}

impl Kernel for Forward {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        for row in rows {
            // SAFETY: the mod's asserts: both have that row, of twice `width` and `width` columns.
            let (gate, out) = unsafe { (self.gate_up.row(row), self.out.row(row)) };
            // SAFETY: as above.
            let up = unsafe { gate.add(self.width) };
            for_lanes(
                simd,
                self.width,
                #[inline(always)]
                // SAFETY: as above.
                |lanes| unsafe {
                    let gate = lanes.load(simd, gate);
                    let silu = simd.mul_f32s(gate, sigmoid(simd, gate));
                    lanes.store(simd, out, simd.mul_f32s(silu, lanes.load(simd, up)));
                },
            );
        }
    }
}

struct Backward {
    gate_up: Rows,
    d_out: Rows,
    d_gate_up: Rows,
    width: usize,
}

impl Kernel for Backward {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        let one = simd.splat_f32s(1.0);
        for row in rows {
            // SAFETY: the mod's asserts: all have that row, of twice `width` and `width` columns.
            let (gate, d_out, d_gate) =
                unsafe { (self.gate_up.row(row), self.d_out.row(row), self.d_gate_up.row(row)) };
            // SAFETY: as above.
            let (up, d_up) = unsafe { (gate.add(self.width), d_gate.add(self.width)) };
            for_lanes(
                simd,
                self.width,
                #[inline(always)]
                // SAFETY: as above. In place is fine: the lanes are read before they are written.
                |lanes| unsafe {
                    let (gate, up) = (lanes.load(simd, gate), lanes.load(simd, up));
                    let d_out = lanes.load(simd, d_out);
                    let sigmoid = sigmoid(simd, gate);
                    let silu = simd.mul_f32s(gate, sigmoid);
                    // silu' = s + x s (1 - s)
                    let slope = simd.mul_add_e_f32s(silu, simd.sub_f32s(one, sigmoid), sigmoid);
                    lanes.store(simd, d_gate, simd.mul_f32s(simd.mul_f32s(d_out, up), slope));
                    lanes.store(simd, d_up, simd.mul_f32s(d_out, silu));
                },
            );
        }
    }
}
