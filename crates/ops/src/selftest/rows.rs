//! Ops that take token rows one by one: norms, activations, rotations, embeddings.

use super::{
    dense::limit,
    twin::{Gaps, Twins},
};
use crate::{
    append, attention, embedding,
    glu::{self, Activation},
    rms_norm,
    rope::{self, Heads, Pairing, Positions, RopeTable},
    scatter,
};
use keyfold_core::DType;

pub(super) const TYPES: [DType; 2] = [DType::F32, DType::Bf16];
pub(super) const GAPS: [Gaps; 2] = [Gaps::Aligned, Gaps::Odd];

pub(super) fn rms_norm(twins: &mut Twins<'_>) {
    // Tokens, groups, width.
    let sizes = [
        (0, 1, 8),
        (1, 1, 3),
        (63, 1, 17),
        (65, 3, 64),
        (130, 1, 768),
        (1029, 2, 128),
        (70, 2, 256),
        (3000, 1, 512),
        (99, 1, 1024),
        (7, 1, 4096),
    ];
    for dtype in TYPES {
        for gaps in GAPS {
            for (tokens, groups, width) in sizes {
                let cols = groups * width;
                let size = format!("{tokens} x {groups} x {width}, {dtype}, {gaps:?}");
                let limit = 2.0 * limit(dtype);
                let [x, residual, d_out] = [0; 3].map(|_| twins.random(tokens, cols, dtype, gaps));
                let weight = twins.random(1, width, DType::F32, Gaps::None);
                let mut sum = twins.empty(tokens, cols, dtype, gaps);
                let mut out = twins.empty(tokens, cols, dtype, gaps);
                let mut rstd = twins.empty(tokens, groups, DType::F32, Gaps::Odd);
                for with in [false, true] {
                    let (r, s) = (with.then_some(&residual.host), with.then_some(&mut sum.host));
                    rms_norm::forward(&x.host, r, &weight.host, 1e-5, s, &mut out.host, &mut rstd.host);
                    let (r, s) = (with.then_some(&residual.device), with.then_some(&mut sum.device));
                    rms_norm::forward(
                        &x.device,
                        r,
                        &weight.device,
                        1e-5,
                        s,
                        &mut out.device,
                        &mut rstd.device,
                    );
                    twins.compare(format!("out, residual {with}, {size}"), &out, limit);
                    twins.compare(format!("rstd, residual {with}, {size}"), &rstd, limit);
                }
                twins.compare(format!("sum, {size}"), &sum, limit);
                let (mut dx, mut dw) =
                    (twins.empty(tokens, cols, dtype, gaps), twins.random(1, width, DType::F32, Gaps::None));
                for accumulate in [false, true] {
                    let (d, x, w, r) = (&d_out.host, &residual.host, &weight.host, &rstd.host);
                    rms_norm::backward(d, x, w, r, &mut dx.host, accumulate, &mut dw.host);
                    let (d, x, w, r) = (&d_out.device, &residual.device, &weight.device, &rstd.device);
                    rms_norm::backward(d, x, w, r, &mut dx.device, accumulate, &mut dw.device);
                    twins.compare(format!("dx, accumulate {accumulate}, {size}"), &dx, 2.0 * limit);
                    twins.compare(format!("dw, accumulate {accumulate}, {size}"), &dw, 2.0 * limit);
                }
            }
        }
    }
}

pub(super) fn glu(twins: &mut Twins<'_>) {
    for dtype in TYPES {
        for gaps in GAPS {
            for activation in [Activation::Silu, Activation::GeluTanh] {
                for (tokens, width) in [(0, 8), (1, 1), (63, 17), (65, 64), (300, 2048)] {
                    let size = format!("{activation:?}, {tokens} x {width}, {dtype}, {gaps:?}");
                    let mut x = twins.random(tokens, 2 * width, dtype, gaps);
                    let d_out = twins.random(tokens, width, dtype, gaps);
                    let mut out = twins.empty(tokens, width, dtype, gaps);
                    glu::forward(activation, &x.host, &mut out.host);
                    glu::forward(activation, &x.device, &mut out.device);
                    twins.compare(format!("out, {size}"), &out, 2.0 * limit(dtype));
                    glu::backward(activation, &x.host.clone(), &d_out.host, &mut x.host);
                    glu::backward(activation, &x.device.clone(), &d_out.device, &mut x.device);
                    twins.compare(format!("gradient in place, {size}"), &x, 2.0 * limit(dtype));
                }
            }
        }
    }
}

pub(super) fn rope(twins: &mut Twins<'_>) {
    for dtype in TYPES {
        for gaps in GAPS {
            for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
                // Tokens, heads, width, stride, offset.
                for (tokens, count, width, stride, offset) in [
                    (0, 1, 8, 8, 0),
                    (5, 1, 2, 2, 0),
                    (63, 3, 10, 13, 2),
                    (130, 12, 64, 64, 0),
                    (65, 4, 32, 96, 64),
                ] {
                    let heads = Heads { count, stride, offset };
                    let table = RopeTable::new(width, 10_000.0, 200).with_pairing(pairing);
                    let at = twins.ids(tokens, 200);
                    let [host, device] = twins.indices(&at);
                    for positions in [
                        [Positions::Rows { seq: 37 }; 2],
                        [Positions::From(50); 2],
                        [Positions::Of(&host), Positions::Of(&device)],
                    ] {
                        for inverse in [false, true] {
                            let mut x = twins.random(tokens, count * stride, dtype, gaps);
                            rope::apply(&mut x.host, heads, &table, positions[0], inverse);
                            rope::apply(&mut x.device, heads, &table, positions[1], inverse);
                            let kind = match positions[0] {
                                Positions::Rows { .. } => "rows",
                                Positions::From(_) => "from",
                                Positions::Of(_) => "given",
                            };
                            let what = format!(
                                "{pairing:?}, {tokens} x {count} x {width}, {kind}, inverse {inverse}, {dtype}, {gaps:?}"
                            );
                            twins.compare(what, &x, limit(dtype));
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn embedding(twins: &mut Twins<'_>) {
    for (table_type, out_type) in [
        (DType::F32, DType::F32),
        (DType::Bf16, DType::Bf16),
        (DType::F32, DType::Bf16),
        (DType::Bf16, DType::F32),
    ] {
        for gaps in GAPS {
            for (tokens, vocabulary, width) in
                [(0, 5, 8), (1, 1, 1), (63, 7, 17), (1000, 50, 768), (2100, 3000, 64)]
            {
                let size =
                    format!("{tokens} of {vocabulary} x {width}, {table_type} to {out_type}, {gaps:?}");
                let ids = twins.ids(tokens, vocabulary);
                let table = twins.random(vocabulary, width, table_type, Gaps::None);
                let mut out = twins.empty(tokens, width, out_type, gaps);
                embedding::forward(&ids, &table.host, &mut out.host);
                embedding::forward(&ids, &table.device, &mut out.device);
                twins.compare(
                    format!("rows, {size}"),
                    &out,
                    if table_type == out_type { 0.0 } else { limit(out_type) },
                );
                let [host, device] = twins.indices(&ids);
                let mut out = twins.empty(tokens, width, out_type, gaps);
                embedding::gather(&host, &table.host, &mut out.host);
                embedding::gather(&device, &table.device, &mut out.device);
                twins.compare(
                    format!("rows of indices, {size}"),
                    &out,
                    if table_type == out_type { 0.0 } else { limit(out_type) },
                );
                let d_out = twins.random(tokens, width, out_type, gaps);
                let mut d_table = twins.random(vocabulary, width, table_type, Gaps::None);
                embedding::backward(&ids, &d_out.host, &mut d_table.host);
                embedding::backward(&ids, &d_out.device, &mut d_table.device);
                twins.compare(format!("gradient, {size}"), &d_table, 2.0 * limit(table_type));
            }
        }
    }
}

pub(super) fn scatter(twins: &mut Twins<'_>) {
    for (from, to) in [
        (DType::F32, DType::F32),
        (DType::Bf16, DType::Bf16),
        (DType::F32, DType::Bf16),
        (DType::Bf16, DType::F32),
    ] {
        for gaps in GAPS {
            for (rows, places, cols) in [(0, 4, 8), (1, 1, 1), (63, 100, 17), (130, 4097, 512)] {
                // Different places, in no order.
                let at: Vec<u32> = (0..rows as u32).map(|row| row * 61 % places as u32).collect();
                let [host, device] = twins.indices(&at);
                let x = twins.random(rows, cols, from, Gaps::Aligned);
                let mut out = twins.random(places, cols, to, gaps);
                scatter::rows(&x.host, &host, &mut out.host);
                scatter::rows(&x.device, &device, &mut out.device);
                twins.compare(
                    format!("{rows} of {places} x {cols}, {from} to {to}, {gaps:?}"),
                    &out,
                    limit(to),
                );
            }
        }
    }
}

pub(super) fn append(twins: &mut Twins<'_>) {
    // Tokens, heads, kv heads, width, width of values, or none.
    for (tokens, heads, kv_heads, width, values) in [
        (0, 4, 1, 64, Some(64)),
        (1, 32, 1, 256, Some(256)),
        (130, 9, 3, 64, Some(192)),
        (33, 16, 16, 128, Some(2048)),
        (65, 32, 1, 256, None),
        (7, 3, 1, 24, Some(24)),
    ] {
        for (rotates, raw_keys) in [(false, false), (true, false), (true, true)] {
            let places = 2 * tokens + 1;
            let at = twins.ids(tokens, 200);
            let rows: Vec<u32> = (0..tokens as u32).rev().map(|row| 2 * row).collect();
            let ([at, device_at], [to, device_to]) = (twins.indices(&at), twins.indices(&rows));
            let table = RopeTable::new(width, 10_000.0, 200);
            let q = twins.random(tokens, heads * width, DType::Bf16, Gaps::Aligned);
            let k = twins.random(tokens, kv_heads * width, DType::Bf16, Gaps::Aligned);
            let v = twins.random(tokens, values.unwrap_or(8), DType::Bf16, Gaps::Aligned);
            let mut keys = twins.random(places, kv_heads * width, DType::Bf16, Gaps::Aligned);
            let mut plane = twins.random(places, values.unwrap_or(8), DType::Bf16, Gaps::Aligned);
            for (q, k, v, keys, plane, positions, rows) in [
                (&q.host, &k.host, &v.host, &mut keys.host, &mut plane.host, &at, &to),
                (
                    &q.device,
                    &k.device,
                    &v.device,
                    &mut keys.device,
                    &mut plane.device,
                    &device_at,
                    &device_to,
                ),
            ] {
                let places = append::Places {
                    positions,
                    rows,
                    rope: rotates.then_some(&table),
                    raw_keys,
                    scales: None,
                };
                let [q, k] = [(q, heads), (k, kv_heads)].map(|(x, count)| attention::Heads::packed(x, count));
                append::append(q, k, values.map(|_| v), places, keys, values.map(|_| plane));
            }
            let what =
                format!("{tokens} x {heads}/{kv_heads} x {width}, rotates {rotates}, raw keys {raw_keys}");
            twins.compare(format!("queries, {what}"), &q, limit(DType::Bf16));
            twins.compare(format!("keys, {what}"), &keys, limit(DType::Bf16));
            twins.compare(format!("values, {what}"), &plane, 0.0);
        }
    }
}
