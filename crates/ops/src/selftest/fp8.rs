//! Rows of a cache in 8 bits: written and read, and new tokens on their way there.

use super::twin::{Gaps, Twins};
use crate::{append, attention::Heads, fp8, rope::RopeTable};
use keyfold_core::{DType, row_width};
use keyfold_tensor::Tensor;

/// Bytes as numbers.
fn bytes(tensor: &Tensor) -> Vec<f32> {
    tensor.to_bytes().into_iter().map(f32::from).collect()
}

pub(super) fn rows(twins: &mut Twins<'_>) {
    for dtype in [DType::F32, DType::Bf16] {
        // Rows, places, elements, first column, columns, those of a scale.
        for (rows, places, elements, first, cols, sharing) in [
            (0, 1, 64, 0, 64, 64),
            (1, 1, 64, 0, 64, 64),
            (63, 100, 576, 512, 64, 64),
            (130, 4097, 512, 128, 256, 64),
            (130, 4097, 512, 128, 256, 256),
            (130, 4097, 512, 64, 384, 192),
            (7, 9, 200, 192, 8, 128),
        ] {
            let at: Vec<u32> = (0..rows as u32).map(|row| row * 61 % places as u32).collect();
            let [host_at, device_at] = twins.indices(&at);
            let x = twins.random(rows, cols, dtype, Gaps::Aligned);
            // From far below to far above what needs no scale, and zeros.
            let sizes = |(i, x): (usize, f32)| {
                x * 10f32.powi((i / 64 % 9) as i32 - 5) * if i / 64 % 10 == 9 { 0.0 } else { 1.0 }
            };
            let values: Vec<f32> = x.host.to_vec().into_iter().enumerate().map(sizes).collect();
            let x = twins.of(rows, cols, dtype, Gaps::Aligned, &values);
            let [mut host, mut device] = twins.bytes(places, row_width(elements, DType::Fp8), 0xFF);
            let mut back = twins.empty(rows, cols, dtype, Gaps::Aligned);
            for (cache, x, at, back) in [
                (&mut host, &x.host, &host_at, &mut back.host),
                (&mut device, &x.device, &device_at, &mut back.device),
            ] {
                let [values, scales] = fp8::Rows::split(cache, elements);
                let values = values.columns(first, cols);
                let rows = fp8::Rows { values: &values, scales: &scales };
                fp8::store(x, at, rows, sharing);
                fp8::load(rows, at, back);
            }
            let what = format!("{rows} of {places} x {cols} of {elements}, {sharing} a scale, {dtype}");
            twins.compare_values(format!("stored, {what}"), &bytes(&device), &bytes(&host), 0.0);
            twins.compare(format!("loaded, {what}"), &back, 0.0);
        }
    }
}

pub(super) fn append(twins: &mut Twins<'_>) {
    // Tokens, heads, kv heads, width, width of values, or none. The third is what is done op by op, and the fourth, whose
    // queries end within sixteen lanes.
    for (tokens, heads, kv_heads, width_of_head, values) in [
        (1, 32, 1, 256, Some(256)),
        (33, 16, 4, 128, Some(512)),
        (130, 9, 3, 64, Some(192)),
        (5, 9, 1, 128, Some(128)),
        (9, 4, 2, 128, Some(512)),
        (17, 6, 2, 384, Some(384)),
        (65, 32, 1, 256, None),
    ] {
        for (rotates, raw_keys) in [(false, false), (true, false), (true, true)] {
            let elements = kv_heads * width_of_head + values.unwrap_or(0);
            let at = twins.ids(tokens, 200);
            let rows: Vec<u32> = (0..tokens as u32).rev().map(|row| 2 * row).collect();
            let ([at, device_at], [to, device_to]) = (twins.indices(&at), twins.indices(&rows));
            let table = RopeTable::new(width_of_head, 10_000.0, 200);
            let q = twins.random(tokens, heads * width_of_head, DType::Bf16, Gaps::Aligned);
            let k = twins.random(tokens, kv_heads * width_of_head, DType::Bf16, Gaps::Aligned);
            let v = twins.random(tokens, values.unwrap_or(8), DType::Bf16, Gaps::Aligned);
            let [host, device] = twins.bytes(2 * tokens, row_width(elements, DType::Fp8), 0);
            let mut cached = Vec::new();
            for (q, k, v, cache, positions, rows) in [
                (&q.host, &k.host, &v.host, &host, &at, &to),
                (&q.device, &k.device, &v.device, &device, &device_at, &device_to),
            ] {
                let [all, scales] = fp8::Rows::split(cache, elements);
                let mut keys = all.columns(0, kv_heads * width_of_head);
                let mut plane = values.map(|width| all.columns(kv_heads * width_of_head, width));
                let rope = rotates.then_some(&table);
                let places = append::Places { positions, rows, rope, raw_keys, scales: Some(&scales) };
                let [q, k] = [(q, heads), (k, kv_heads)].map(|(x, count)| Heads::packed(x, count));
                append::append(q, k, values.map(|_| v), places, &mut keys, plane.as_mut());
                let rows = fp8::Rows { values: &all, scales: &scales };
                cached.push((0..2 * tokens).flat_map(|at| rows.row(at)).collect::<Vec<_>>());
            }
            let what = format!(
                "{tokens} x {heads}/{kv_heads} x {width_of_head}, rotates {rotates}, raw keys {raw_keys}"
            );
            twins.compare(format!("queries, {what}"), &q, 3e-3);
            // Where rotation differs in its last bit, an element may be rounded the other way.
            let limit = if rotates && !raw_keys { 2e-2 } else { 0.0 };
            twins.compare_values(format!("cache, {what}"), &cached[1], &cached[0], limit);
        }
    }
}
