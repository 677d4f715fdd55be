use super::*;
use crate::{
    simd::on_every_isa,
    testing::{assert_close, random, to_f64},
};
use keyfold_core::DType;
use keyfold_tensor::Arena;

const HYPER: Hyper =
    Hyper { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 1, grad_scale: 0.5 };

#[test]
fn follows_the_reference() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        for (rows, cols) in [(1, 1), (63, 17), (65, 640), (1, 40_001)] {
            let values = random(1, rows * cols);
            let mut param = arena.tensor_of(rows, cols, &values);
            let (mut m, mut v) = (arena.zeros(rows, cols, DType::F32), arena.zeros(rows, cols, DType::F32));
            let mut want = to_f64(&values);
            let (mut want_m, mut want_v) = (vec![0.0; want.len()], vec![0.0; want.len()]);
            for step_number in 1..=5 {
                let grad = random(100 + step_number, rows * cols);
                let hyper = Hyper { step: step_number, ..HYPER };
                step(&mut param, &arena.tensor_of(rows, cols, &grad), &mut m, &mut v, None, &hyper, None);
                reference::step(&mut want, &to_f64(&grad), &mut want_m, &mut want_v, &hyper);
            }
            assert_close("param", &param.to_vec(), &want, 1e-6);
            assert_close("m", &m.to_vec(), &want_m, 1e-6);
            assert_close("v", &v.to_vec(), &want_v, 1e-6);
        }
    });
}

/// Values of `torch.optim.AdamW` (2.15, f32) after three steps on the gradients [0.3, -1, 2], [0.1, 1, -2], [0, 0, 1].
#[test]
fn follows_torch() {
    let arena = Arena::new();
    let mut param = arena.tensor_of(1, 3, &[1.0, -2.0, 0.5]);
    let (mut m, mut v) = (arena.zeros(1, 3, DType::F32), arena.zeros(1, 3, DType::F32));
    let grads = [[0.3, -1.0, 2.0], [0.1, 1.0, -2.0], [0.0, 0.0, 1.0]];
    for (i, grad) in grads.iter().enumerate() {
        let hyper = Hyper { step: i as u64 + 1, grad_scale: 1.0, ..HYPER };
        step(&mut param, &arena.tensor_of(1, 3, grad), &mut m, &mut v, None, &hyper, None);
    }
    assert_close("param", &param.to_vec(), &[0.971_342_206, -1.984_964_013, 0.487_285_078], 1e-7);
}

#[test]
fn zero_gradient_only_decays() {
    let arena = Arena::new();
    let mut param = arena.tensor_of(1, 2, &[1.0, -2.0]);
    let (mut m, mut v) = (arena.zeros(1, 2, DType::F32), arena.zeros(1, 2, DType::F32));
    step(&mut param, &arena.zeros(1, 2, DType::F32), &mut m, &mut v, None, &HYPER, None);
    assert_close("param", &param.to_vec(), &[0.999, -1.998], 1e-7);
}

#[test]
fn squares() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        for len in [0, 1, 63, 16_385, 100_000] {
            let values = random(3, len);
            let want: f64 = to_f64(&values).iter().map(|x| x * x).sum();
            let got = sum_of_squares(&arena.tensor_of(1, len, &values));
            assert!((got - want).abs() <= 1e-6 * want, "{got}, want {want}");
        }
        assert!(sum_of_squares(&arena.tensor_of(1, 3, &[1.0, f32::NAN, 2.0])).is_nan());
        assert_eq!(sum_of_squares(&arena.tensor_of(1, 3, &[1.0, f32::NEG_INFINITY, 2.0])), f64::INFINITY);
        assert_eq!(sum_of_squares(&arena.tensor_of(1, 1, &[1e30])), f64::INFINITY);
    });
}

#[test]
fn same_bits_for_any_number_of_threads() {
    let arena = Arena::new();
    let grad = arena.tensor_of(100, 1000, &random(1, 100_000));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        pool.install(|| sum_of_squares(&grad))
    };
    assert_eq!(run(1).to_bits(), run(3).to_bits());
}
