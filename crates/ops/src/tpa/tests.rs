use super::*;
use crate::{
    simd::on_every_isa,
    testing::{assert_close, assert_gradient, empty, random, strided, to_f64, weigh},
};
use keyfold_tensor::Arena;

/// Tokens; heads, rank, width of a head.
const CASES: [(usize, reference::Sizes); 4] =
    [(1, (1, 1, 1)), (63, (3, 2, 17)), (65, (4, 6, 64)), (20, (22, 6, 100))];

#[test]
fn reference_gradients() {
    let sizes = (3, 2, 4);
    let (a, b, d_out) = (to_f64(&random(1, 12)), to_f64(&random(2, 16)), to_f64(&random(3, 24)));
    let (d_a, d_b) = reference::backward(&d_out, &a, &b, sizes);
    assert_gradient("d_a", &d_a, &a, |a| weigh(&reference::combine(a, &b, sizes), &d_out));
    assert_gradient("d_b", &d_b, &b, |b| weigh(&reference::combine(&a, b, sizes), &d_out));
}

#[test]
fn forward_and_backward() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        for (tokens, sizes) in CASES {
            let (heads, rank, width) = sizes;
            let (cols_a, cols_b, cols) = (rank * heads, rank * width, heads * width);
            let (a, b) = (random(1, tokens * cols_a), random(2, tokens * cols_b));
            let d_out = random(3, tokens * cols);
            let want = reference::combine(&to_f64(&a), &to_f64(&b), sizes);
            let (want_a, want_b) = reference::backward(&to_f64(&d_out), &to_f64(&a), &to_f64(&b), sizes);

            let (a, b) = (strided(&arena, tokens, cols_a, &a), strided(&arena, tokens, cols_b, &b));
            let mut out = empty(&arena, tokens, cols);
            combine(&a, &b, heads, &mut out);
            assert_close("out", &out.to_vec(), &want, 1e-6);

            let d_out = strided(&arena, tokens, cols, &d_out);
            let (mut d_a, mut d_b) = (empty(&arena, tokens, cols_a), empty(&arena, tokens, cols_b));
            backward(&d_out, &a, &b, heads, &mut d_a, &mut d_b, false);
            assert_close("d_a", &d_a.to_vec(), &want_a, 1e-6);
            assert_close("d_b", &d_b.to_vec(), &want_b, 1e-6);
            backward(&d_out, &a, &b, heads, &mut d_a, &mut d_b, true);
            let twice = |x: &[f64]| x.iter().map(|x| 2.0 * x).collect::<Vec<_>>();
            assert_close("accumulated d_a", &d_a.to_vec(), &twice(&want_a), 1e-6);
            assert_close("accumulated d_b", &d_b.to_vec(), &twice(&want_b), 1e-6);
        }
    });
}
