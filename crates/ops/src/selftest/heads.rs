//! Ops of single attention designs, and mixtures of experts.

use super::{
    dense::limit,
    rows::{GAPS, TYPES},
    twin::{Gaps, Twins},
};
use crate::{
    mla_keys,
    moe::{self, Router},
    tpa,
    value_map::{self, GateGradient},
};
use keyfold_core::DType;

pub(super) fn tpa(twins: &mut Twins<'_>) {
    for dtype in TYPES {
        for gaps in GAPS {
            for (tokens, rank, heads, width) in [(0, 1, 1, 8), (1, 1, 1, 1), (63, 3, 5, 7), (130, 6, 12, 64)]
            {
                let size = format!("{tokens} tokens, rank {rank}, {heads} x {width}, {dtype}, {gaps:?}");
                let a = twins.random(tokens, rank * heads, dtype, gaps);
                let b = twins.random(tokens, rank * width, dtype, gaps);
                let d_out = twins.random(tokens, heads * width, dtype, gaps);
                let mut out = twins.empty(tokens, heads * width, dtype, gaps);
                tpa::combine(&a.host, &b.host, heads, &mut out.host);
                tpa::combine(&a.device, &b.device, heads, &mut out.device);
                twins.compare(format!("heads, {size}"), &out, limit(dtype));
                let mut da = twins.empty(tokens, rank * heads, dtype, gaps);
                let mut db = twins.empty(tokens, rank * width, dtype, gaps);
                for add in [false, true] {
                    tpa::backward(&d_out.host, &a.host, &b.host, heads, &mut da.host, &mut db.host, add);
                    tpa::backward(
                        &d_out.device,
                        &a.device,
                        &b.device,
                        heads,
                        &mut da.device,
                        &mut db.device,
                        add,
                    );
                    twins.compare(format!("da, accumulate {add}, {size}"), &da, 2.0 * limit(dtype));
                    twins.compare(format!("db, accumulate {add}, {size}"), &db, 2.0 * limit(dtype));
                }
            }
        }
    }
}

pub(super) fn mla_keys(twins: &mut Twins<'_>) {
    for dtype in TYPES {
        for gaps in GAPS {
            // Tokens, heads, own width, shared width, columns from a head to the next.
            for (tokens, heads, own, shared, stride) in
                [(1, 1, 3, 0, 3), (63, 3, 5, 2, 9), (130, 12, 64, 32, 128)]
            {
                let size = format!("{tokens} x {heads} x ({own} + {shared}), {dtype}, {gaps:?}");
                let cols = (heads - 1) * stride + own;
                let nope = twins.random(tokens, cols, dtype, gaps);
                let pe = twins.random(tokens, shared, dtype, gaps);
                let mut out = twins.empty(tokens, heads * (own + shared), dtype, gaps);
                mla_keys::forward(&nope.host, stride, &pe.host, heads, &mut out.host);
                mla_keys::forward(&nope.device, stride, &pe.device, heads, &mut out.device);
                twins.compare(format!("keys, {size}"), &out, 0.0);
                // What lies between the heads is left alone.
                let (mut d_nope, mut d_pe) = (nope, twins.empty(tokens, shared, dtype, gaps));
                for add in [false, true] {
                    mla_keys::backward(&out.host, heads, &mut d_nope.host, stride, &mut d_pe.host, add);
                    mla_keys::backward(&out.device, heads, &mut d_nope.device, stride, &mut d_pe.device, add);
                    twins.compare(format!("own, {size}"), &d_nope, 0.0);
                    twins.compare(format!("shared, accumulate {add}, {size}"), &d_pe, 2.0 * limit(dtype));
                }
            }
        }
    }
}

pub(super) fn value_map(twins: &mut Twins<'_>) {
    for dtype in TYPES {
        for gaps in GAPS {
            for (tokens, width) in [(0, 8), (1, 1), (63, 17), (1030, 128)] {
                for gated in [false, true] {
                    let size = format!("gate {gated}, {tokens} x {width}, {dtype}, {gaps:?}");
                    let [k, n, d_out] = [0; 3].map(|_| twins.random(tokens, width, dtype, gaps));
                    let alpha = twins.random(1, width, DType::F32, Gaps::None);
                    let mut out = twins.empty(tokens, width, dtype, gaps);
                    value_map::forward(&k.host, &n.host, gated.then_some(&alpha.host), &mut out.host);
                    value_map::forward(&k.device, &n.device, gated.then_some(&alpha.device), &mut out.device);
                    twins.compare(format!("value, {size}"), &out, limit(dtype));
                    let [mut dk, mut dn] = [0; 2].map(|_| twins.empty(tokens, width, dtype, gaps));
                    let mut d_alpha = twins.random(1, width, DType::F32, Gaps::None);
                    for add in [false, true] {
                        let (n_host, d_alpha_host) = (&n.host, &mut d_alpha.host);
                        let gate = GateGradient { n: n_host, alpha: &alpha.host, d_alpha: d_alpha_host };
                        value_map::backward(
                            &d_out.host,
                            gated.then_some(gate),
                            &mut dk.host,
                            add,
                            &mut dn.host,
                        );
                        let (n, d_alpha_device) = (&n.device, &mut d_alpha.device);
                        let gate = GateGradient { n, alpha: &alpha.device, d_alpha: d_alpha_device };
                        let (d_out, dn) = (&d_out.device, &mut dn.device);
                        value_map::backward(d_out, gated.then_some(gate), &mut dk.device, add, dn);
                        twins.compare(format!("dk, accumulate {add}, {size}"), &dk, 2.0 * limit(dtype));
                    }
                    twins.compare(format!("dn, {size}"), &dn, limit(dtype));
                    twins.compare(format!("d_alpha, {size}"), &d_alpha, 1e-5);
                }
            }
        }
    }
}

pub(super) fn moe(twins: &mut Twins<'_>) {
    let router = Router {
        top_k: 2,
        scoring: moe::Scoring::Softmax,
        normalise: true,
        scaling: 1.5,
        groups: 1,
        top_groups: 1,
        group_score: moe::GroupScore::Best,
    };
    for dtype in TYPES {
        for gaps in GAPS {
            for (tokens, experts, hidden) in [(1, 2, 8), (63, 5, 17), (130, 8, 256)] {
                let size = format!("{tokens} x {experts} x {hidden}, {dtype}, {gaps:?}");
                let logits = twins.random(tokens, experts, dtype, gaps);
                let mut weights = twins.empty(tokens, 2, dtype, gaps);
                let (mut chosen, mut chosen_there) = (vec![0; 2 * tokens], vec![0; 2 * tokens]);
                moe::route(&router, &logits.host, None, &mut chosen, &mut weights.host);
                moe::route(&router, &logits.device, None, &mut chosen_there, &mut weights.device);
                twins.compare(format!("weights, {size}"), &weights, limit(dtype));
                let floats = |ids: &[u32]| ids.iter().map(|id| *id as f32).collect::<Vec<_>>();
                twins.compare_values(
                    format!("choice, {size}"),
                    &floats(&chosen_there),
                    &floats(&chosen),
                    0.0,
                );
                let d_weights = twins.random(tokens, 2, dtype, gaps);
                let mut d_logits = twins.empty(tokens, experts, dtype, gaps);
                moe::route_backward(&router, &logits.host, &chosen, &d_weights.host, &mut d_logits.host);
                moe::route_backward(
                    &router,
                    &logits.device,
                    &chosen,
                    &d_weights.device,
                    &mut d_logits.device,
                );
                twins.compare(format!("d_logits, {size}"), &d_logits, 2.0 * limit(dtype));

                let weights = twins.random(tokens, 2, dtype, gaps);
                let mut out = twins.random(tokens, hidden, dtype, gaps);
                let mut d_weights = twins.random(tokens, 2, dtype, gaps);
                for assigned in moe::assign(&chosen, 2, experts) {
                    let rows = assigned.tokens.len();
                    let y = twins.random(rows, hidden, dtype, gaps);
                    let mut dy = twins.empty(rows, hidden, dtype, gaps);
                    moe::scatter(&assigned, &y.host, &weights.host, &mut out.host);
                    moe::scatter(&assigned, &y.device, &weights.device, &mut out.device);
                    let (w, d) = (&weights.host, &out.host);
                    moe::scatter_backward(&assigned, &y.host, w, d, &mut dy.host, &mut d_weights.host);
                    let (w, d) = (&weights.device, &out.device);
                    moe::scatter_backward(&assigned, &y.device, w, d, &mut dy.device, &mut d_weights.device);
                    twins.compare(format!("dy, {size}"), &dy, 4.0 * limit(dtype));
                }
                twins.compare(format!("sum, {size}"), &out, 4.0 * limit(dtype));
                twins.compare(format!("d_weights, {size}"), &d_weights, 4.0 * limit(dtype));
            }
        }
    }
}
