use super::*;
use crate::{
    simd::on_every_isa,
    testing::{assert_close, assert_gradient, empty, random, strided, to_f64, weigh},
};
use keyfold_tensor::Arena;

/// A cube of values up to 12 goes through the exponential.
const REL: f64 = 4e-6;
const ACTIVATIONS: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];
const SHAPES: [(usize, usize); 4] = [(1, 1), (63, 17), (65, 640), (3, 100)];

fn values(tokens: usize, width: usize) -> Vec<f32> {
    random(1, tokens * 2 * width).iter().map(|x| 12.0 * x).collect()
}

#[test]
fn reference_gradient() {
    let (tokens, width) = (3, 5);
    let (gate_up, d_out) = (to_f64(&random(1, tokens * 2 * width)), to_f64(&random(2, tokens * width)));
    for activation in ACTIVATIONS {
        let gradient = reference::backward(activation, &gate_up, &d_out, width);
        assert_gradient("d_gate_up", &gradient, &gate_up, |x| {
            weigh(&reference::forward(activation, x, width), &d_out)
        });
    }
}

#[test]
fn forward_and_backward() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        for (activation, (tokens, width)) in ACTIVATIONS.into_iter().flat_map(|a| SHAPES.map(|s| (a, s))) {
            let values = values(tokens, width);
            let gate_up = strided(&arena, tokens, 2 * width, &values);
            let mut out = empty(&arena, tokens, width);
            forward(activation, &gate_up, &mut out);
            assert_close(
                "out",
                &out.to_vec(),
                &reference::forward(activation, &to_f64(&values), width),
                1e-6,
            );

            let d_out = random(2, tokens * width);
            let want = reference::backward(activation, &to_f64(&values), &to_f64(&d_out), width);
            let d_out = strided(&arena, tokens, width, &d_out);
            let mut d_gate_up = empty(&arena, tokens, 2 * width);
            backward(activation, &gate_up, &d_out, &mut d_gate_up);
            assert_close("d_gate_up", &d_gate_up.to_vec(), &want, REL);
            backward(activation, &gate_up, &d_out, &mut gate_up.clone());
            assert_close("d_gate_up in place", &gate_up.to_vec(), &want, REL);
        }
    });
}

#[test]
fn large_inputs_saturate() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        let gate_up = arena.tensor_of(1, 8, &[-1e4, -200.0, 200.0, 1e4, 1.0, 1.0, 1.0, 1.0]);
        let mut out = empty(&arena, 1, 4);
        forward(Activation::Silu, &gate_up, &mut out);
        assert_eq!(out.to_vec(), [0.0, 0.0, 200.0, 1e4]);
        let mut d_gate_up = empty(&arena, 1, 8);
        backward(Activation::Silu, &gate_up, &arena.tensor_of(1, 4, &[1.0; 4]), &mut d_gate_up);
        assert_eq!(d_gate_up.to_vec(), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 200.0, 1e4]);
    });
}
