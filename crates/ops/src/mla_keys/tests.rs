use super::*;
use crate::{
    simd::on_every_isa,
    testing::{assert_close, assert_gradient, empty, random, strided, to_f64, weigh},
};
use keyfold_tensor::Arena;

/// Tokens; heads, own width, shared width; columns between two heads' own parts.
const CASES: [(usize, reference::Sizes, usize); 5] = [
    (1, (1, 1, 1), 0),
    (63, (3, 17, 5), 7),
    (65, (4, 32, 16), 32),
    (9, (2, 64, 0), 64),
    (40, (16, 100, 30), 1),
];

/// Spreads heads of `own` columns over rows of `heads * (own + gap)`; the gaps hold `fill`.
fn spread(values: &[f32], own: usize, gap: usize, fill: f32) -> Vec<f32> {
    values.chunks_exact(own).flat_map(|head| [head, &vec![fill; gap]].concat()).collect()
}

#[test]
fn reference_gradients() {
    let sizes = (2, 3, 2);
    let (nope, k_pe, d_out) = (to_f64(&random(1, 12)), to_f64(&random(2, 4)), to_f64(&random(3, 20)));
    let (d_nope, d_pe) = reference::backward(&d_out, sizes);
    assert_gradient("d_nope", &d_nope, &nope, |nope| weigh(&reference::forward(nope, &k_pe, sizes), &d_out));
    assert_gradient("d_pe", &d_pe, &k_pe, |k_pe| weigh(&reference::forward(&nope, k_pe, sizes), &d_out));
}

#[test]
fn forward_and_backward() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        for (tokens, sizes, gap) in CASES {
            let (heads, own, shared) = sizes;
            let (stride, cols) = (own + gap, heads * (own + shared));
            let (nope, k_pe) = (random(1, tokens * heads * own), random(2, tokens * shared));
            let d_out = random(3, tokens * cols);
            let want = reference::forward(&to_f64(&nope), &to_f64(&k_pe), sizes);
            let (want_nope, want_pe) = reference::backward(&to_f64(&d_out), sizes);

            let nope = strided(&arena, tokens, heads * stride, &spread(&nope, own, gap, f32::NAN));
            let k_pe = strided(&arena, tokens, shared, &k_pe);
            let mut out = empty(&arena, tokens, cols);
            forward(&nope, stride, &k_pe, heads, &mut out);
            assert_close("out", &out.to_vec(), &want, 0.0);

            let d_out = strided(&arena, tokens, cols, &d_out);
            let zeros = vec![0.0; tokens * heads * stride];
            let mut d_nope = strided(&arena, tokens, heads * stride, &zeros);
            let mut d_pe = empty(&arena, tokens, shared);
            backward(&d_out, heads, &mut d_nope, stride, &mut d_pe, false);
            let want_nope: Vec<f32> = want_nope.iter().map(|x| *x as f32).collect();
            assert_eq!(d_nope.to_vec(), spread(&want_nope, own, gap, 0.0), "d_nope");
            assert_close("d_pe", &d_pe.to_vec(), &want_pe, 1e-6);
            backward(&d_out, heads, &mut d_nope, stride, &mut d_pe, true);
            let twice: Vec<f64> = want_pe.iter().map(|x| 2.0 * x).collect();
            assert_close("accumulated d_pe", &d_pe.to_vec(), &twice, 1e-6);
        }
    });
}
