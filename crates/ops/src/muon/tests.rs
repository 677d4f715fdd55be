use super::*;
use crate::testing::{assert_close, random, strided, to_f64};
use keyfold_core::DType;
use keyfold_tensor::Arena;

const HYPER: Hyper = Hyper { lr: 0.02, momentum: 0.95, weight_decay: 0.1, grad_scale: 0.5 };

#[test]
fn follows_the_reference() {
    let arena = Arena::poisoned();
    for (rows, cols) in [(1, 1), (3, 40), (40, 3), (33, 33), (65, 130)] {
        let values = random(1, rows * cols);
        let mut param = strided(&arena, rows, cols, &values);
        let mut m = arena.zeros(rows, cols, DType::F32);
        let (mut want, mut want_m) = (to_f64(&values), vec![0.0; values.len()]);
        for seed in 2..5 {
            let grad = random(seed, rows * cols);
            step(&mut param, &strided(&arena, rows, cols, &grad), &mut m, &HYPER);
            reference::step(&mut want, &to_f64(&grad), &mut want_m, rows, &HYPER);
        }
        assert_close("param", &param.to_vec(), &want, 2e-6);
        assert_close("m", &m.to_vec(), &want_m, 1e-6);
    }
}

/// For orthogonal rows the Gram matrix is diagonal, and its diagonal holds the squared singular values.
#[test]
fn singular_values_end_near_one() {
    let arena = Arena::poisoned();
    for scale in [1e-3f32, 1.0, 1e3] {
        let mut x = vec![0.0; 8 * 20];
        (0..8).for_each(|i| x[i * 20 + i] = scale * (0.02 + i as f32));
        let mut tensor = arena.tensor_of(8, 20, &x);
        cpu::orthogonalise(&mut tensor);
        let gram = reference::gram(&to_f64(&tensor.to_vec()), 8);
        for (i, g) in gram.iter().enumerate() {
            let near = if i % 9 == 0 { (0.3..1.6).contains(g) } else { g.abs() < 1e-3 };
            assert!(near, "entry {i} of the Gram matrix is {g}");
        }
    }
}

#[test]
fn zero_gradient_only_decays() {
    let arena = Arena::poisoned();
    let mut param = arena.tensor_of(2, 3, &[1.0; 6]);
    let (grad, mut m) = (arena.zeros(2, 3, DType::F32), arena.zeros(2, 3, DType::F32));
    step(&mut param, &grad, &mut m, &HYPER);
    assert_close("param", &param.to_vec(), &[1.0 - 0.002; 6], 1e-6);
}

#[test]
fn tall_is_wide_transposed() {
    let arena = Arena::poisoned();
    let wide = random(1, 7 * 31);
    let mut x = arena.tensor_of(7, 31, &wide);
    cpu::orthogonalise(&mut x);
    let tall: Vec<f32> = reference::transpose(&to_f64(&wide), 7).iter().map(|x| *x as f32).collect();
    let mut y = arena.tensor_of(31, 7, &tall);
    cpu::orthogonalise(&mut y);
    assert_close("tall", &y.to_vec(), &reference::transpose(&to_f64(&x.to_vec()), 7), 1e-5);
}
