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

/// A whole MLP: near the reference, and the very values of its steps.
#[test]
fn mlp_is_its_steps() {
    let arena = Arena::poisoned();
    for dtype in [DType::F32, DType::Bf16] {
        for (tokens, input, width, output) in
            [(1, 5, 3, 4), (16, 64, 32, 32), (65, 33, 31, 35), (70, 100, 97, 40), (200, 576, 200, 576)]
        {
            let matrix = |seed, rows, cols| {
                let mut w = arena.tensor(rows, cols, dtype);
                w.write(&random(seed, rows * cols));
                w
            };
            let gate_up = matrix(1, 2 * width, input);
            let down = matrix(2, output, width);
            let values = random(3, tokens * input);
            let x = strided(&arena, tokens, input, &values);
            for activation in ACTIVATIONS {
                let mut sums = empty(&arena, tokens, 2 * width);
                linear::forward_joined(&x, &[&gate_up], None, &mut sums);
                let mut hidden = empty(&arena, tokens, width);
                forward(activation, &sums, &mut hidden);
                let mut want = empty(&arena, tokens, output);
                linear::forward(&hidden, &down, None, &mut want, false);
                let halves = [gate_up.row_range(0, width), gate_up.row_range(width, width)];
                for parts in [vec![&gate_up], vec![&halves[0], &halves[1]]] {
                    for threads in [1, 2, 5] {
                        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                        let mut out = empty(&arena, tokens, output);
                        pool.install(|| mlp(activation, &x, &parts, &down, &mut out));
                        assert!(out.to_vec() == want.to_vec(), "{tokens} {input} {width} {output} {dtype}");
                    }
                }
                let product = |x: &[f64], w: &Tensor| -> Vec<f64> {
                    let (w, k) = (to_f64(&w.to_vec()), w.cols());
                    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
                    x.chunks_exact(k)
                        .flat_map(|x| w.chunks_exact(k).map(|w| dot(x, w)).collect::<Vec<_>>())
                        .collect()
                };
                let sums = product(&to_f64(&values), &gate_up);
                let exact = product(&reference::forward(activation, &sums, width), &down);
                assert_close("mlp", &want.to_vec(), &exact, 1e-5);
            }
        }
    }
}

#[test]
#[should_panic(expected = "glu::mlp: gate and up for a down projection of 3 inputs")]
fn mlp_shapes_are_checked() {
    let arena = Arena::new();
    let zeros = |rows, cols| arena.zeros(rows, cols, DType::F32);
    mlp(Activation::Silu, &zeros(2, 5), &[&zeros(5, 5)], &zeros(4, 3), &mut zeros(2, 4));
}
