use super::*;
use crate::{
    simd::on_every_isa,
    testing::{assert_close, empty, random, strided, to_f64},
};
use keyfold_tensor::Arena;

const SHAPES: [(usize, usize); 5] = [(1, 1), (63, 17), (65, 256), (1, 33_333), (2, 0)];

#[test]
fn sums() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        for (rows, cols) in SHAPES {
            let (a, b) = (random(1, rows * cols), random(2, rows * cols));
            let want = reference::add(&to_f64(&a), &to_f64(&b));
            let (a, b) = (strided(&arena, rows, cols, &a), arena.tensor_of(rows, cols, &b));
            let mut out = empty(&arena, rows, cols);
            forward(&a, &b, &mut out);
            assert_close("a + b", &out.to_vec(), &want, 1e-7);
            let mut out = a.clone();
            assign(&mut out, &b);
            assert_close("a += b", &a.to_vec(), &want, 1e-7);
        }
    });
}

#[test]
fn multiples() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        for (rows, cols) in SHAPES {
            let values = random(1, rows * cols);
            let x = strided(&arena, rows, cols, &values);
            let want = reference::scale(&to_f64(&values), -2.5);
            let mut out = empty(&arena, rows, cols);
            scale(&x, -2.5, &mut out, false);
            assert_close("scale", &out.to_vec(), &want, 1e-7);
            scale(&x, -2.5, &mut out, true);
            assert_close("accumulated", &out.to_vec(), &reference::add(&want, &want), 1e-7);
            scale(&x, -2.5, &mut x.clone(), false);
            assert_close("in place", &x.to_vec(), &want, 1e-7);
        }
    });
}
