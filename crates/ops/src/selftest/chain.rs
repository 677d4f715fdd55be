//! Products that follow each other, which a GPU may compute in one kernel.

use super::{
    dense::limit,
    twin::{Gaps, Twin, Twins},
};
use crate::{
    add,
    glu::Activation,
    linear::{self, Fused},
};
use keyfold_core::DType;
use keyfold_tensor::Tensor;

/// Times that a layer is computed: blocks that do not wait for each other as they should find the inputs of the time before.
const TIMES: usize = 40;

pub(super) fn products(twins: &mut Twins<'_>) {
    // Those of a model; few columns and odd rows; fewer outputs than blocks; long rows.
    let sizes = [
        Sizes { width: 2048, heads: 8192, middle: 5632, rank: 1024, others: 512 },
        Sizes { width: 72, heads: 136, middle: 1000, rank: 24, others: 42 },
        Sizes { width: 576, heads: 48, middle: 1536, rank: 200, others: 0 },
        Sizes { width: 1032, heads: 4104, middle: 8192, rank: 2056, others: 6 },
    ];
    let (sizes, times) = if twins.small() { (&sizes[1..2], 3) } else { (&sizes[..], TIMES) };
    linear::in_one_kernel(|| {
        for sizes in sizes {
            for tokens in [1, 2, 3] {
                layer(twins, tokens, *sizes, times);
            }
        }
        beside(twins);
        in_place(twins);
        long(twins);
    });
    // As models have them: small ones in kernels of their own.
    for sizes in sizes {
        layer(twins, 1, *sizes, 2);
    }
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    width: usize,
    /// Columns of attention's output.
    heads: usize,
    middle: usize,
    /// Columns of the latents that queries are made of, and of keys and values beside them.
    rank: usize,
    others: usize,
}

/// Each on the host and on the device.
fn both(x: &Twin, w: &Twin, out: &mut Twin, accumulate: bool) {
    linear::forward(&x.host, &w.host, None, &mut out.host, accumulate);
    linear::forward(&x.device, &w.device, None, &mut out.device, accumulate);
}

/// From one attention to the next.
fn layer(twins: &mut Twins<'_>, tokens: usize, sizes: Sizes, times: usize) {
    let Sizes { width, heads, middle, rank, others } = sizes;
    let bf16 = DType::Bf16;
    let mut weight = |outputs, inputs| twins.random(outputs, inputs, bf16, Gaps::None);
    let weights = [
        weight(width, heads),
        weight(2 * middle, width),
        weight(width, middle),
        weight(rank + others, width),
        weight(heads, rank),
    ];
    let gains = [width, width, rank].map(|inputs| twins.random(1, inputs, DType::F32, Gaps::None));
    let bias = twins.random(1, rank + others, DType::F32, Gaps::None);
    let x = twins.random(tokens, heads, bf16, Gaps::Aligned);
    let before = twins.random(tokens, width, bf16, Gaps::Aligned);
    let run = |of: fn(&Twin) -> &Tensor, outs: [&mut Tensor; 4]| {
        let [hidden, gated, latents, queries] = outs;
        let [output, gate_up, down, latent, query] = weights.each_ref().map(of);
        let norm = |at: usize| Some((of(&gains[at]), 1e-5));
        let normed = |at: usize| Fused { norm: norm(at), ..Fused::default() };
        let sum = Fused { accumulate: true, ..Fused::default() };
        let gate = Fused { norm: norm(0), gate: Some(Activation::Silu), accumulate: false };
        linear::forward_fused(of(&x), output, None, sum, hidden);
        linear::forward_fused(hidden, gate_up, None, gate, gated);
        linear::forward_fused(gated, down, None, sum, hidden);
        linear::forward_fused(hidden, latent, Some(of(&bias)), normed(1), latents);
        linear::forward_fused(&latents.columns(0, rank), query, None, normed(2), queries);
    };
    let mut outs =
        [width, middle, rank + others, heads].map(|cols| twins.empty(tokens, cols, bf16, Gaps::Aligned));
    for time in 0..times {
        let [hidden, gated, latents, queries] = &mut outs;
        // A different sum each time, so that what is left of the time before is wrong.
        let scale = 1.0 + time as f32 / 64.0;
        add::scale(&before.host, scale, &mut hidden.host, false);
        add::scale(&before.device, scale, &mut hidden.device, false);
        let device = [&mut hidden.device, &mut gated.device, &mut latents.device, &mut queries.device];
        run(|twin| &twin.device, device);
        if time == 0 || time + 1 == times {
            let host = [&mut hidden.host, &mut gated.host, &mut latents.host, &mut queries.host];
            run(|twin| &twin.host, host);
            for (name, out) in ["hidden", "gated", "latents", "queries"].into_iter().zip(&outs) {
                twins.compare(
                    format!("{tokens} of a layer, time {time}, {name}, {sizes:?}"),
                    out,
                    6.0 * limit(bf16),
                );
            }
        }
    }
}

/// Several products of one input, the last in f32, then one of the first's result and one of an input that was there before.
fn beside(twins: &mut Twins<'_>) {
    let bf16 = DType::Bf16;
    let (x, other) = (twins.random(1, 520, bf16, Gaps::Aligned), twins.random(1, 96, bf16, Gaps::Aligned));
    let w = [(264, 520), (61, 520), (1000, 264), (30, 96)]
        .map(|(outputs, inputs)| twins.random(outputs, inputs, bf16, Gaps::None));
    let mut outs = [(264, bf16), (61, DType::F32), (1000, DType::F32), (30, bf16)]
        .map(|(cols, dtype)| twins.empty(1, cols, dtype, Gaps::Aligned));
    let [a, b, c, d] = &mut outs;
    both(&x, &w[0], a, false);
    both(&x, &w[1], b, false);
    both(a, &w[2], c, false);
    both(&other, &w[3], d, false);
    for (at, out) in outs.iter().enumerate() {
        twins.compare(format!("4 products, number {at}"), out, 4.0 * limit(bf16));
    }
}

/// A sum that is added to what the first product read, through few outputs and through many.
fn in_place(twins: &mut Twins<'_>) {
    let (bf16, width) = (DType::Bf16, 2000);
    for middle in [16, 4000] {
        let (up, down) =
            (twins.random(middle, width, bf16, Gaps::None), twins.random(width, middle, bf16, Gaps::None));
        let mut x = twins.random(1, width, bf16, Gaps::Aligned);
        let mut between = twins.empty(1, middle, bf16, Gaps::Aligned);
        let mut next = twins.empty(1, width, bf16, Gaps::Aligned);
        for _ in 0..8 {
            both(&x, &up, &mut between, false);
            both(&between, &down, &mut x, true);
            let scale = 1.0 / ((width * middle) as f32).sqrt();
            add::scale(&x.host, scale, &mut next.host, false);
            add::scale(&x.device, scale, &mut next.device, false);
            std::mem::swap(&mut x, &mut next);
        }
        twins.compare(format!("{width} through {middle} in place"), &x, 8.0 * limit(bf16));
    }
}

/// More products than one kernel takes, each of what the one before made.
fn long(twins: &mut Twins<'_>) {
    let (bf16, width, count) = (DType::Bf16, 192, 19);
    let w = twins.random(width, width, bf16, Gaps::None);
    let gain = twins.random(1, width, DType::F32, Gaps::None);
    let mut values = vec![twins.random(1, width, bf16, Gaps::Aligned)];
    // Before the first product: memory that is made ready has all before it computed.
    values.extend((0..count).map(|_| twins.empty(1, width, bf16, Gaps::Aligned)));
    for at in 0..count {
        let (made, left) = values.split_at_mut(at + 1);
        let (x, out) = (&made[at], &mut left[0]);
        let norm = |gain| Fused { norm: Some((gain, 1e-5)), ..Fused::default() };
        linear::forward_fused(&x.host, &w.host, None, norm(&gain.host), &mut out.host);
        linear::forward_fused(&x.device, &w.device, None, norm(&gain.device), &mut out.device);
    }
    let x = &values[count];
    twins.compare(format!("{count} products of {width}"), x, 20.0 * limit(bf16));
}
