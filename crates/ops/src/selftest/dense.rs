//! Sums, copies and linear maps.

use super::twin::{Gaps, Twins};
use crate::{
    add,
    attention::Heads,
    cast,
    glu::Activation,
    linear::{self, Fused},
};
use keyfold_core::DType;

/// Rows and columns: nothing, odd ones, whole vectors, more than a block.
const SIZES: [(usize, usize); 6] = [(0, 8), (1, 1), (63, 17), (65, 64), (130, 1000), (1000, 2056)];
const GAPS: [Gaps; 3] = [Gaps::None, Gaps::Aligned, Gaps::Odd];

/// The norm of rounding errors, relative to the values': half a unit in the last place, with room.
pub(super) fn limit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2e-6,
        DType::Bf16 => 3e-3,
        DType::Fp8 => 4e-2,
    }
}

pub(super) fn add(twins: &mut Twins<'_>) {
    for dtype in [DType::F32, DType::Bf16] {
        for gaps in GAPS {
            for (rows, cols) in SIZES {
                let size = format!("{rows} x {cols}, {dtype}, {gaps:?}");
                let (a, b) = (twins.random(rows, cols, dtype, gaps), twins.random(rows, cols, dtype, gaps));
                let mut out = twins.empty(rows, cols, dtype, gaps);
                add::forward(&a.host, &b.host, &mut out.host);
                add::forward(&a.device, &b.device, &mut out.device);
                twins.compare(format!("sum, {size}"), &out, limit(dtype));
                add::assign(&mut out.host, &b.host);
                add::assign(&mut out.device, &b.device);
                twins.compare(format!("assign, {size}"), &out, 2.0 * limit(dtype));
                for accumulate in [false, true] {
                    add::scale(&a.host, -1.7, &mut out.host, accumulate);
                    add::scale(&a.device, -1.7, &mut out.device, accumulate);
                    twins.compare(
                        format!("scale, accumulate {accumulate}, {size}"),
                        &out,
                        4.0 * limit(dtype),
                    );
                }
            }
        }
    }
}

pub(super) fn cast(twins: &mut Twins<'_>) {
    for from in [DType::F32, DType::Bf16] {
        for to in [DType::F32, DType::Bf16] {
            for gaps in GAPS {
                for (rows, cols) in SIZES.into_iter().chain([(1, 200_003)]) {
                    let x = twins.random(rows, cols, from, gaps);
                    let mut out = twins.empty(rows, cols, to, gaps);
                    cast::copy(&x.host, &mut out.host);
                    cast::copy(&x.device, &mut out.device);
                    let what = format!("{from} to {to}, {rows} x {cols}, {gaps:?}");
                    twins.compare(what, &out, if to == from { 0.0 } else { limit(to) });
                }
            }
        }
    }
}

pub(super) fn linear(twins: &mut Twins<'_>) {
    // Tokens, inputs, outputs.
    let sizes = [
        (1, 8, 8),
        (1, 2048, 1536),
        (3, 5640, 61),
        (8, 1024, 2050),
        (63, 17, 33),
        (31, 64, 65),
        (33, 1000, 1000),
        (64, 2048, 61),
        (65, 64, 128),
        (257, 768, 2056),
        (1024, 512, 1536),
    ];
    for (x_type, y_type) in [(DType::F32, DType::F32), (DType::Bf16, DType::Bf16), (DType::Bf16, DType::F32)]
    {
        for gaps in GAPS {
            for (tokens, inputs, outputs) in sizes {
                let size = format!("{tokens} x {inputs} x {outputs}, {x_type} to {y_type}, {gaps:?}");
                let limit = if y_type == DType::F32 { 2e-5 } else { limit(y_type) };
                let x = twins.random(tokens, inputs, x_type, gaps);
                let w = twins.random(outputs, inputs, x_type, Gaps::None);
                let bias = twins.random(1, outputs, DType::F32, Gaps::None);
                let mut y = twins.empty(tokens, outputs, y_type, gaps);
                for (biased, accumulate) in [(false, false), (true, false), (false, true), (true, true)] {
                    let with = |bias| biased.then_some(bias);
                    linear::forward(&x.host, &w.host, with(&bias.host), &mut y.host, accumulate);
                    linear::forward(&x.device, &w.device, with(&bias.device), &mut y.device, accumulate);
                    let what = format!("forward, bias {biased}, accumulate {accumulate}, {size}");
                    twins.compare(what, &y, 2.0 * limit);
                }
                // Gradients of activations have their type, those of weights are f32.
                let dy = twins.random(tokens, outputs, x_type, gaps);
                let mut dx = twins.empty(tokens, inputs, y_type, gaps);
                let mut dw = twins.empty(outputs, inputs, DType::F32, Gaps::None);
                let mut d_bias = twins.empty(1, outputs, DType::F32, Gaps::None);
                for accumulate in [false, true] {
                    linear::backward_input(&dy.host, &w.host, &mut dx.host, accumulate);
                    linear::backward_input(&dy.device, &w.device, &mut dx.device, accumulate);
                    twins.compare(format!("dx, accumulate {accumulate}, {size}"), &dx, 2.0 * limit);
                    linear::backward_weight(&dy.host, &x.host, &mut dw.host, accumulate);
                    linear::backward_weight(&dy.device, &x.device, &mut dw.device, accumulate);
                    twins.compare(format!("dw, accumulate {accumulate}, {size}"), &dw, 2e-5);
                    linear::backward_bias(&dy.host, &mut d_bias.host, accumulate);
                    linear::backward_bias(&dy.device, &mut d_bias.device, accumulate);
                    twins.compare(format!("d_bias, accumulate {accumulate}, {size}"), &d_bias, 2e-5);
                }
            }
        }
    }
}

/// Each head's own map, on heads among other columns.
pub(super) fn linear_heads(twins: &mut Twins<'_>) {
    for dtype in [DType::F32, DType::Bf16] {
        for (tokens, heads, input, output, apart) in
            [(1, 3, 8, 16, 8), (5, 16, 128, 512, 192), (65, 4, 64, 24, 64), (130, 16, 512, 128, 576)]
        {
            let x = twins.random(tokens, heads * apart, dtype, Gaps::Aligned);
            let w = twins.random(heads * output, input, dtype, Gaps::None);
            let mut out = twins.empty(tokens, heads * output, dtype, Gaps::Aligned);
            for (x, w, out) in [(&x.host, &w.host, &mut out.host), (&x.device, &w.device, &mut out.device)] {
                let x = Heads { tensor: x, count: heads, width: input, stride: apart };
                linear::forward_heads(x, w, Heads::packed(out, heads));
            }
            twins.compare(format!("{tokens} x {heads} x {input} to {output}, {dtype}"), &out, limit(dtype));
        }
    }
}

/// A product of a few rows with its norm, its gate, or what it is added to.
pub(super) fn linear_fused(twins: &mut Twins<'_>) {
    let mut sizes = vec![(1, 2048, 1536), (2, 64, 24), (4, 5632, 2048), (7, 1000, 62), (9, 256, 128)];
    // Rows of every kernel; outputs and inputs that fill no tile, and so many that a block has two warpgroups.
    for tokens in [3, 8, 16, 17, 31, 32, 33, 64, 65] {
        sizes.extend([(tokens, 72, 130), (tokens, 1000, 1002), (tokens, 520, 9000)]);
    }
    if twins.small() {
        sizes = vec![(1, 72, 130), (2, 1000, 62), (3, 520, 130), (17, 1000, 130), (33, 72, 1002)];
    }
    for (tokens, inputs, outputs) in sizes {
        for (normed, gate, accumulate, dtype, gaps) in [
            (true, None, false, DType::Bf16, Gaps::Aligned),
            (true, Some(Activation::Silu), false, DType::Bf16, Gaps::Aligned),
            (false, Some(Activation::GeluTanh), false, DType::F32, Gaps::Odd),
            (false, None, true, DType::Bf16, Gaps::Aligned),
            (true, None, true, DType::F32, Gaps::Odd),
        ] {
            let x = twins.random(tokens, inputs, DType::Bf16, Gaps::Aligned);
            let w = twins.random(outputs, inputs, DType::Bf16, Gaps::None);
            let gain = twins.random(1, inputs, DType::F32, Gaps::None);
            let bias = twins.random(1, outputs, DType::F32, Gaps::None);
            let width = if gate.is_some() { outputs / 2 } else { outputs };
            let mut out = twins.random(tokens, width, dtype, gaps);
            for (x, w, gain, bias, out) in [
                (&x.host, &w.host, &gain.host, &bias.host, &mut out.host),
                (&x.device, &w.device, &gain.device, &bias.device, &mut out.device),
            ] {
                let fused = Fused { norm: normed.then_some((gain, 1e-5)), gate, accumulate };
                linear::forward_fused(x, w, Some(bias), fused, out);
            }
            let what = format!(
                "{tokens} x {inputs} x {outputs}, norm {normed}, gate {gate:?}, add {accumulate}, {dtype}"
            );
            twins.compare(what, &out, 3.0 * limit(DType::Bf16));
        }
    }
}
