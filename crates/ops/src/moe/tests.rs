use super::*;
use crate::{
    simd::on_every_isa,
    testing::{assert_close, empty, random, strided, to_f64},
};
use keyfold_core::DType;
use keyfold_tensor::Arena;

fn routers() -> Vec<(Router, usize)> {
    let plain = Router {
        top_k: 3,
        scoring: Scoring::Softmax,
        normalise: false,
        scaling: 1.0,
        groups: 1,
        top_groups: 1,
        group_score: GroupScore::Best,
    };
    let grouped = Router { groups: 4, top_groups: 2, scaling: 2.5, ..plain };
    vec![
        (plain, 12),
        (Router { top_k: 1, normalise: true, ..plain }, 7),
        (Router { top_k: 5, ..plain }, 5),
        (grouped, 12),
        (
            Router {
                scoring: Scoring::Sigmoid,
                normalise: true,
                group_score: GroupScore::BestTwo,
                ..grouped
            },
            16,
        ),
        (Router { top_k: 6, scoring: Scoring::Sigmoid, ..grouped }, 12),
    ]
}

#[test]
fn routes_and_their_gradients() {
    let arena = Arena::poisoned();
    for (router, experts) in routers() {
        for tokens in [1, 63, 65] {
            let k = router.top_k;
            let (x, bias) = (random(1, tokens * experts), random(2, experts));
            let logits = strided(&arena, tokens, experts, &x);
            for with_bias in [false, true] {
                let row = arena.tensor_of(1, experts, &bias);
                let mut chosen = vec![0; tokens * k];
                let mut weights = empty(&arena, tokens, k);
                route(&router, &logits, with_bias.then_some(&row), &mut chosen, &mut weights);
                let bias64 = to_f64(&bias);
                let mut want = Vec::new();
                for (t, x) in to_f64(&x).chunks_exact(experts).enumerate() {
                    let (experts, weights) = reference::route(&router, x, with_bias.then_some(&bias64[..]));
                    assert_eq!(chosen[t * k..][..k], experts, "{router:?}");
                    want.extend(weights);
                }
                assert_close("weights", &weights.to_vec(), &want, 1e-6);

                let d = random(3, tokens * k);
                let mut d_logits = empty(&arena, tokens, experts);
                route_backward(&router, &logits, &chosen, &strided(&arena, tokens, k, &d), &mut d_logits);
                let mut want = Vec::new();
                for (t, x) in to_f64(&x).chunks_exact(experts).enumerate() {
                    let chosen = &chosen[t * k..][..k];
                    let loss = |x: &[f64]| -> f64 {
                        let weights = reference::weights(&router, x, chosen);
                        weights.iter().zip(&d[t * k..]).map(|(w, d)| w * f64::from(*d)).sum()
                    };
                    let mut x = x.to_vec();
                    for e in 0..experts {
                        const STEP: f64 = 1e-5;
                        let at = x[e];
                        let [up, down] = [STEP, -STEP].map(|step| {
                            x[e] = at + step;
                            loss(&x)
                        });
                        x[e] = at;
                        want.push((up - down) / (2.0 * STEP));
                    }
                }
                assert!(want.iter().any(|x| x.abs() > 1e-6) || k == 1);
                if want.iter().all(|x| x.abs() < 1e-9) {
                    assert!(d_logits.to_vec().iter().all(|x| x.abs() < 1e-6));
                } else {
                    assert_close("d_logits", &d_logits.to_vec(), &want, 1e-5);
                }
            }
        }
    }
}

#[test]
fn rows_are_scattered_with_their_weights() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        let (tokens, k, experts, hidden) = (65, 2, 5, 37);
        // Each token's two experts differ.
        let chosen: Vec<u32> =
            (0..tokens as u32).flat_map(|t| [t * 7 % experts, (t * 7 + 1 + t % 3) % experts]).collect();
        let weights = random(1, tokens * k);
        let weights_t = strided(&arena, tokens, k, &weights);
        let start = random(2, tokens * hidden);
        let mut out = strided(&arena, tokens, hidden, &start);
        let mut want = to_f64(&start);
        let d_out = random(3, tokens * hidden);
        let d_out_t = strided(&arena, tokens, hidden, &d_out);
        let mut d_weights = arena.tensor(tokens, k, DType::F32);
        let mut want_d_weights = vec![0.0; tokens * k];
        let all = assign(&chosen, k, experts as usize);
        assert_eq!(all.iter().map(|a| a.tokens.len()).sum::<usize>(), tokens * k);
        for (e, assigned) in all.iter().enumerate() {
            let rows = assigned.tokens.len();
            let y = random(10 + e as u64, rows * hidden);
            let y_t = strided(&arena, rows, hidden, &y);
            scatter(assigned, &y_t, &weights_t, &mut out);
            let mut dy = empty(&arena, rows, hidden);
            scatter_backward(assigned, &y_t, &weights_t, &d_out_t, &mut dy, &mut d_weights);
            let mut want_dy = Vec::new();
            for (row, (t, s)) in assigned.tokens.iter().zip(&assigned.slots).enumerate() {
                let (t, at) = (*t as usize, *t as usize * k + *s as usize);
                assert_eq!(chosen[at], e as u32);
                for c in 0..hidden {
                    let (y, d) = (f64::from(y[row * hidden + c]), f64::from(d_out[t * hidden + c]));
                    want[t * hidden + c] += f64::from(weights[at]) * y;
                    want_d_weights[at] += y * d;
                    want_dy.push(f64::from(weights[at]) * d);
                }
            }
            assert_close("dy", &dy.to_vec(), &want_dy, 1e-6);
        }
        assert_close("out", &out.to_vec(), &want, 1e-6);
        assert_close("d_weights", &d_weights.to_vec(), &want_d_weights, 1e-5);
    });
}
