use super::*;
use crate::{
    simd::on_every_isa,
    testing::{assert_close, assert_gradient, empty, random, strided, to_f64},
};
use keyfold_core::DType;
use keyfold_tensor::{Arena, bf16};

/// Tokens, width, vocabulary. The last one takes several chunks.
const SHAPES: [(usize, usize, usize); 5] =
    [(1, 1, 1), (63, 17, 31), (65, 32, 100), (0, 4, 5), (150, 5, 20_001)];

fn targets(tokens: usize, vocabulary: usize) -> Vec<u32> {
    let pick = |x: &f32| (x.abs() * vocabulary as f32) as u32 % vocabulary as u32;
    let mut targets: Vec<u32> = random(7, tokens).iter().map(pick).collect();
    targets.iter_mut().skip(1).step_by(5).for_each(|target| *target = IGNORE);
    targets
}

fn weights(tokens: usize) -> Vec<f32> {
    let mut weights = random(8, tokens);
    weights.iter_mut().skip(2).step_by(7).for_each(|weight| *weight = 0.0);
    weights
}

#[test]
fn reference_gradients() {
    let (tokens, width, vocabulary) = (4, 3, 5);
    let (x, w) = (to_f64(&random(1, tokens * width)), to_f64(&random(2, vocabulary * width)));
    let case =
        reference::Case { width, targets: &targets(tokens, vocabulary), weights: &to_f64(&weights(tokens)) };
    let (dx, dw) = case.gradients(&x, &w, 0.3);
    assert_gradient("dx", &dx, &x, |x| 0.3 * case.loss(x, &w).sum);
    assert_gradient("dw", &dw, &w, |w| 0.3 * case.loss(&x, w).sum);
}

#[test]
fn agrees() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        for ((tokens, width, vocabulary), weighted) in
            SHAPES.into_iter().flat_map(|shape| [(shape, false), (shape, true)])
        {
            let x_values: Vec<f32> = random(1, tokens * width).iter().map(|x| 4.0 * x).collect();
            let w_values = random(2, vocabulary * width);
            let targets = targets(tokens, vocabulary);
            let weights = if weighted { weights(tokens) } else { vec![1.0; tokens] };
            let case = reference::Case { width, targets: &targets, weights: &to_f64(&weights) };
            let (x64, w64) = (to_f64(&x_values), to_f64(&w_values));
            let scale = 0.25f32;
            let (want_dx, mut want_dw) = case.gradients(&x64, &w64, f64::from(scale));
            want_dw.iter_mut().zip(&w64).for_each(|(want, before)| *want += before);
            let want = case.loss(&x64, &w64);
            let check = |loss: Loss| {
                assert!(
                    (loss.sum - want.sum).abs() <= 2e-6 * want.sum.abs().max(1.0),
                    "{loss:?}, want {want:?}"
                );
                assert!((loss.weight - want.weight).abs() < 1e-6, "{loss:?}, want {want:?}");
            };

            let x = strided(&arena, tokens, width, &x_values);
            let w = arena.tensor_of(vocabulary, width, &w_values);
            let weights = weighted.then_some(&weights[..]);
            let mut dx = empty(&arena, tokens, width);
            let mut dw = arena.tensor_of(vocabulary, width, &w_values);
            check(forward_backward(&x, &w, &targets, weights, scale, &mut dx, &mut dw).read());
            assert_close("dx", &dx.to_vec(), &want_dx, 3e-6);
            assert_close("dw", &dw.to_vec(), &want_dw, 3e-6);

            let (mut per_token, mut correct) = (vec![f32::NAN; tokens], vec![true; tokens]);
            check(evaluate(&x, &w, &targets, weights, Some(&mut per_token), Some(&mut correct)));
            assert_close("per token", &per_token, &case.losses(&x64, &w64), 2e-6);
            assert_eq!(correct, case.correct(&x64, &w64));
            check(evaluate(&x, &w, &targets, weights, None, None));
        }
    });
}

#[test]
fn weights_in_bf16() {
    let arena = Arena::poisoned();
    let (tokens, width, vocabulary) = (9, 16, 40);
    let values: Vec<f32> =
        random(2, vocabulary * width).iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
    let x = arena.tensor_of(tokens, width, &random(1, tokens * width));
    let mut w = arena.tensor(vocabulary, width, DType::Bf16);
    w.write(&values);
    let wide = arena.tensor_of(vocabulary, width, &values);
    let targets = targets(tokens, vocabulary);
    let (got, want) =
        (evaluate(&x, &w, &targets, None, None, None), evaluate(&x, &wide, &targets, None, None, None));
    assert!((got.sum - want.sum).abs() < 1e-5 * want.sum, "{got:?}, want {want:?}");
}

#[test]
fn of_equal_logits_the_first_is_right() {
    let arena = Arena::new();
    let (x, w) = (arena.zeros(3, 2, DType::F32), arena.zeros(4, 2, DType::F32));
    let mut correct = [false; 3];
    let loss = evaluate(&x, &w, &[0, 1, 3], None, None, Some(&mut correct));
    assert_eq!(correct, [true, false, false]);
    assert!((loss.mean() - 4f64.ln()).abs() < 1e-6);
}

#[test]
fn a_nan_is_seen_where_it_counts() {
    let arena = Arena::new();
    let x = arena.tensor_of(2, 1, &[f32::NAN, 1.0]);
    let w = arena.tensor_of(3, 1, &[1.0, 2.0, 3.0]);
    let (mut dx, mut dw) = (arena.zeros(2, 1, DType::F32), arena.zeros(3, 1, DType::F32));
    let loss = forward_backward(&x, &w, &[0, 1], None, 1.0, &mut dx, &mut dw).read();
    assert!(loss.sum.is_nan() && dx.to_vec()[0].is_nan(), "a NaN that counts is seen");
    let loss = forward_backward(&x, &w, &[IGNORE, 1], None, 1.0, &mut dx, &mut dw.clone()).read();
    assert!(loss.sum.is_finite() && dx.to_vec()[0] == 0.0, "{loss:?}, {:?}", dx.to_vec());
}

#[test]
fn same_bits_for_any_number_of_threads() {
    let arena = Arena::new();
    let (tokens, width, vocabulary) = (300, 24, 5000);
    let x = arena.tensor_of(tokens, width, &random(1, tokens * width));
    let w = arena.tensor_of(vocabulary, width, &random(2, vocabulary * width));
    let targets = targets(tokens, vocabulary);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        let (mut dx, mut dw) = (empty(&arena, tokens, width), arena.zeros(vocabulary, width, DType::F32));
        let loss = pool.install(|| forward_backward(&x, &w, &targets, None, 0.1, &mut dx, &mut dw).read());
        (loss, dx.to_vec(), dw.to_vec())
    };
    assert_eq!(run(1), run(3));
}

#[test]
#[should_panic(expected = "a target is not below 4")]
fn unknown_target() {
    let arena = Arena::new();
    evaluate(&arena.zeros(1, 2, DType::F32), &arena.zeros(4, 2, DType::F32), &[4], None, None, None);
}
