//! One pass over memory; the sigmoid is recomputed in the backward rather than kept.

use super::{Activation, GELU_CUBE, GELU_SCALE};
use crate::{
    gemm::{Gate, View, ViewMut, gated_mlp},
    simd::{Kernel, Rows, block_rows, for_lanes, launch, sigmoid},
};
use keyfold_tensor::Tensor;
use pulp::Simd;
use std::{marker::PhantomData, ops::Range};

pub(super) fn forward(activation: Activation, gate_up: &Tensor, out: &mut Tensor) {
    match activation {
        Activation::Silu => forward_of::<Silu>(gate_up, out),
        Activation::GeluTanh => forward_of::<GeluTanh>(gate_up, out),
    }
}

/// See [`super::mlp`]; false where it was not done.
pub(super) fn mlp(activation: Activation, x: &Tensor, weights: [&Tensor; 3], out: &mut Tensor) -> bool {
    let (x, weights, out) = (View::of(x), weights.map(View::of_bf16), ViewMut::of(out));
    match activation {
        Activation::Silu => gated_mlp::<Silu>(x, weights, out),
        Activation::GeluTanh => gated_mlp::<GeluTanh>(x, weights, out),
    }
}

pub(super) fn backward(activation: Activation, gate_up: &Tensor, d_out: &Tensor, d_gate_up: &mut Tensor) {
    match activation {
        Activation::Silu => backward_of::<Silu>(gate_up, d_out, d_gate_up),
        Activation::GeluTanh => backward_of::<GeluTanh>(gate_up, d_out, d_gate_up),
    }
}

/// The `g` of an activation `x * sigmoid(g(x))`.
trait Argument: Send + Sync {
    fn value<S: Simd>(simd: S, x: S::f32s) -> S::f32s;
    fn slope<S: Simd>(simd: S, x: S::f32s) -> S::f32s;
}

struct Silu;

impl Argument for Silu {
    #[inline(always)]
    fn value<S: Simd>(_: S, x: S::f32s) -> S::f32s {
        x
    }

    #[inline(always)]
    fn slope<S: Simd>(simd: S, _: S::f32s) -> S::f32s {
        simd.splat_f32s(1.0)
    }
}

struct GeluTanh;

impl Argument for GeluTanh {
    #[inline(always)]
    fn value<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        let cube = simd.splat_f32s((GELU_SCALE * GELU_CUBE) as f32);
        let factor = simd.mul_add_e_f32s(simd.mul_f32s(x, x), cube, simd.splat_f32s(GELU_SCALE as f32));
        simd.mul_f32s(x, factor)
    }

    #[inline(always)]
    fn slope<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        let cube = simd.splat_f32s((3.0 * GELU_SCALE * GELU_CUBE) as f32);
        simd.mul_add_e_f32s(simd.mul_f32s(x, x), cube, simd.splat_f32s(GELU_SCALE as f32))
    }
}

impl<A: Argument> Gate for A {
    #[inline(always)]
    fn gated<S: Simd>(simd: S, gate: S::f32s, up: S::f32s) -> S::f32s {
        simd.mul_f32s(simd.mul_f32s(gate, sigmoid(simd, A::value(simd, gate))), up)
    }
}

fn forward_of<A: Argument>(gate_up: &Tensor, out: &mut Tensor) {
    let kernel = Forward::<A> {
        gate_up: Rows::of(gate_up),
        out: Rows::of(out),
        width: out.cols(),
        argument: PhantomData,
    };
    launch(out.rows(), block_rows(out.cols()), &kernel);
}

fn backward_of<A: Argument>(gate_up: &Tensor, d_out: &Tensor, d_gate_up: &mut Tensor) {
    let kernel = Backward::<A> {
        gate_up: Rows::of(gate_up),
        d_out: Rows::of(d_out),
        d_gate_up: Rows::of(d_gate_up),
        width: d_out.cols(),
        argument: PhantomData,
    };
    launch(d_out.rows(), block_rows(d_out.cols()), &kernel);
}

struct Forward<A> {
    gate_up: Rows,
    out: Rows,
    width: usize,
    argument: PhantomData<A>,
}

impl<A: Argument> Kernel for Forward<A> {
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
                    let (gate, up) = (lanes.load(simd, gate), lanes.load(simd, up));
                    lanes.store(simd, out, A::gated(simd, gate, up));
                },
            );
        }
    }
}

struct Backward<A> {
    gate_up: Rows,
    d_out: Rows,
    d_gate_up: Rows,
    width: usize,
    argument: PhantomData<A>,
}

impl<A: Argument> Kernel for Backward<A> {
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
                    let sigmoid = sigmoid(simd, A::value(simd, gate));
                    let activated = simd.mul_f32s(gate, sigmoid);
                    // (x s)' = s + x s (1 - s) g'
                    let inner = simd.mul_f32s(simd.sub_f32s(one, sigmoid), A::slope(simd, gate));
                    let slope = simd.mul_add_e_f32s(activated, inner, sigmoid);
                    lanes.store(simd, d_gate, simd.mul_f32s(simd.mul_f32s(d_out, up), slope));
                    lanes.store(simd, d_up, simd.mul_f32s(d_out, activated));
                },
            );
        }
    }
}
