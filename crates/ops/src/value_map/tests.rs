use super::*;
use crate::{
    simd::on_every_isa,
    testing::{assert_close, assert_gradient, empty, random, strided, to_f64, weigh},
};
use keyfold_tensor::Arena;

const SHAPES: [(usize, usize); 4] = [(1, 1), (63, 17), (65, 256), (500, 100)];

#[test]
fn reference_gradients() {
    let (k, n, alpha) = (to_f64(&random(1, 20)), to_f64(&random(2, 20)), to_f64(&random(3, 5)));
    let d_out = to_f64(&random(4, 20));
    let (d_n, d_alpha) = reference::backward(&d_out, &n, &alpha);
    assert_gradient("d_k", &d_out, &k, |k| weigh(&reference::forward(k, &n, &alpha), &d_out));
    assert_gradient("d_n", &d_n, &n, |n| weigh(&reference::forward(&k, n, &alpha), &d_out));
    assert_gradient("d_alpha", &d_alpha, &alpha, |a| weigh(&reference::forward(&k, &n, a), &d_out));
}

#[test]
fn forward_and_backward() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        for ((tokens, width), gated) in SHAPES.into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
            let (k, n, d_out) =
                (random(1, tokens * width), random(2, tokens * width), random(3, tokens * width));
            let alpha = if gated { random(4, width) } else { vec![1.0; width] };
            let before = random(5, width);
            let want = reference::forward(&to_f64(&k), &to_f64(&n), &to_f64(&alpha));
            let (want_n, mut want_alpha) = reference::backward(&to_f64(&d_out), &to_f64(&n), &to_f64(&alpha));
            want_alpha.iter_mut().zip(&before).for_each(|(want, before)| *want += f64::from(*before));
            let want_k: Vec<f64> = d_out.iter().zip(&k).map(|(d, k)| f64::from(*d) + f64::from(*k)).collect();

            let tensor = |values: &[f32]| strided(&arena, tokens, width, values);
            let (k, n, d_out) = (tensor(&k), tensor(&n), tensor(&d_out));
            let (alpha, mut d_alpha) =
                (arena.tensor_of(1, width, &alpha), arena.tensor_of(1, width, &before));
            let mut out = empty(&arena, tokens, width);
            forward(&k, &n, gated.then_some(&alpha), &mut out);
            assert_close("out", &out.to_vec(), &want, 1e-6);

            let gate = gated.then_some(GateGradient { n: &n, alpha: &alpha, d_alpha: &mut d_alpha });
            let (mut d_k, mut d_n) = (empty(&arena, tokens, width), empty(&arena, tokens, width));
            backward(&d_out, gate, &mut d_k, false, &mut d_n);
            assert_eq!(d_k.to_vec(), d_out.to_vec());
            assert_close("d_n", &d_n.to_vec(), &want_n, 1e-6);
            if gated {
                assert_close("d_alpha", &d_alpha.to_vec(), &want_alpha, 1e-6);
            }
            let gate = gated.then_some(GateGradient { n: &n, alpha: &alpha, d_alpha: &mut d_alpha });
            backward(&d_out, gate, &mut k.clone(), true, &mut d_out.clone());
            assert_close("accumulated d_k", &k.to_vec(), &want_k, 1e-6);
            assert_close("d_n in place of d_out", &d_out.to_vec(), &want_n, 1e-6);
        }
    });
}
