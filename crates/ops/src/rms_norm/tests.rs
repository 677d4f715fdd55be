use super::*;
use crate::{
    simd::on_every_isa,
    testing::{assert_close, assert_gradient, empty, random, strided, to_f64, weigh},
};
use keyfold_tensor::Arena;

/// Tokens, groups, width.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 3), (63, 1, 17), (65, 3, 64), (130, 1, 256), (3, 2, 100), (0, 1, 8)];
const EPS: f32 = 1e-5;

fn add(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

#[test]
fn reference_gradients() {
    let (x, weight) = (to_f64(&random(1, 30)), to_f64(&random(2, 5)));
    let (d_out, eps) = (to_f64(&random(3, 30)), 1e-2);
    let (d_x, d_weight) = reference::backward(&d_out, &x, &weight, eps);
    assert_gradient("d_x", &d_x, &x, |x| weigh(&reference::forward(x, &weight, eps), &d_out));
    assert_gradient("d_weight", &d_weight, &weight, |w| weigh(&reference::forward(&x, w, eps), &d_out));
}

#[test]
fn forward_agrees() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        for (tokens, groups, width) in SHAPES {
            let cols = groups * width;
            let (x, residual, weight) =
                (random(1, tokens * cols), random(2, tokens * cols), random(3, width));
            let weight_tensor = arena.tensor_of(1, width, &weight);
            let (mut out, mut rstd) = (empty(&arena, tokens, cols), empty(&arena, tokens, groups));
            let check = |s: &[f32], out: &Tensor, rstd: &Tensor| {
                let s = to_f64(s);
                let want = reference::forward(&s, &to_f64(&weight), f64::from(EPS));
                assert_close("out", &out.to_vec(), &want, 1e-6);
                let want: Vec<f64> =
                    s.chunks_exact(width).map(|s| reference::rstd(s, f64::from(EPS))).collect();
                assert_close("rstd", &rstd.to_vec(), &want, 1e-6);
            };

            let x_tensor = strided(&arena, tokens, cols, &x);
            forward(&x_tensor, None, &weight_tensor, EPS, None, &mut out, &mut rstd);
            check(&x, &out, &rstd);

            let residual_tensor = strided(&arena, tokens, cols, &residual);
            let mut sum = x_tensor.clone();
            let residual_tensor = Some(&residual_tensor);
            forward(&x_tensor, residual_tensor, &weight_tensor, EPS, Some(&mut sum), &mut out, &mut rstd);
            let total = add(&x, &residual);
            assert_eq!(x_tensor.to_vec(), total, "the sum in place of x");
            check(&total, &out, &rstd);

            let mut in_place = strided(&arena, tokens, cols, &x);
            forward(&in_place.clone(), None, &weight_tensor, EPS, None, &mut in_place, &mut rstd);
            check(&x, &in_place, &rstd);
        }
    });
}

#[test]
fn backward_agrees() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        for (tokens, groups, width) in SHAPES {
            let cols = groups * width;
            let (x, weight, d_out) = (random(1, tokens * cols), random(2, width), random(3, tokens * cols));
            let before = random(4, width);
            let (want, mut want_weight) =
                reference::backward(&to_f64(&d_out), &to_f64(&x), &to_f64(&weight), f64::from(EPS));
            want_weight.iter_mut().zip(&before).for_each(|(want, before)| *want += f64::from(*before));

            let (x, weight) = (strided(&arena, tokens, cols, &x), arena.tensor_of(1, width, &weight));
            let (mut out, mut rstd) = (empty(&arena, tokens, cols), empty(&arena, tokens, groups));
            forward(&x, None, &weight, EPS, None, &mut out, &mut rstd);

            let d_out = strided(&arena, tokens, cols, &d_out);
            let (mut d_x, mut d_weight) = (empty(&arena, tokens, cols), arena.tensor_of(1, width, &before));
            backward(&d_out, &x, &weight, &rstd, &mut d_x, false, &mut d_weight);
            assert_close("d_x", &d_x.to_vec(), &want, 3e-6);
            assert_close("d_weight", &d_weight.to_vec(), &want_weight, 3e-6);

            backward(&d_out, &x, &weight, &rstd, &mut d_x, true, &mut d_weight);
            let twice: Vec<f64> = want.iter().map(|x| 2.0 * x).collect();
            assert_close("accumulated d_x", &d_x.to_vec(), &twice, 3e-6);
            backward(&d_out, &x, &weight, &rstd, &mut d_out.clone(), false, &mut d_weight);
            assert_close("d_x in place of d_out", &d_out.to_vec(), &want, 3e-6);
        }
    });
}

#[test]
fn same_bits_for_any_number_of_threads() {
    let arena = Arena::new();
    let (tokens, width) = (1000, 70);
    let x = arena.tensor_of(tokens, width, &random(1, tokens * width));
    let weight = arena.tensor_of(1, width, &random(2, width));
    let rstd = arena.tensor_of(tokens, 1, &random(3, tokens));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        let mut d_x = empty(&arena, tokens, width);
        let mut d_weight = arena.tensor_of(1, width, &vec![0.0; width]);
        pool.install(|| backward(&x, &x, &weight, &rstd, &mut d_x, false, &mut d_weight));
        (d_x.to_vec(), d_weight.to_vec())
    };
    assert_eq!(run(1), run(3));
}
