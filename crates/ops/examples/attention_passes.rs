//! Times attention of whole sequences, forward and backward, through the ops: one line of JSON for each shape.
//!
//! ```text
//! cargo run --release -p keyfold-ops --features cuda --example attention_passes -- cuda [B,S,HEADS,KV_HEADS,WIDTH,VALUE_WIDTH ...]
//! ```
//! TFLOP/s count 2 operations a channel for each product of the unmasked half: 2 products forward, 5 backward.

// A panic with its message is what an example has to say.
#![allow(clippy::unwrap_used)]

use keyfold_core::DType;
use keyfold_ops::attention::{Gradient, Heads, Shape, backward, forward};
use keyfold_tensor::{Arena, Device, Tensor};
use std::time::Instant;

/// Step-3's attention at 8192 tokens, then the widths of the other kernels.
const SHAPES: [&str; 6] = [
    "1,8192,64,1,256,256",
    "8,2048,16,1,256,256",
    "8,2048,16,1,192,192",
    "8,2048,16,16,192,128",
    "16,2048,16,1,128,128",
    "32,1024,8,8,64,64",
];
const ROUNDS: usize = 5;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let device: Device = arguments.next().as_deref().unwrap_or("cuda").parse().unwrap();
    let given: Vec<String> = arguments.collect();
    println!("{}", device.describe());
    let shapes = if given.is_empty() { SHAPES.map(String::from).into() } else { given };
    for shape in shapes {
        let sizes: Vec<usize> = shape.split(',').map(|size| size.parse().unwrap()).collect();
        measure(device, sizes.try_into().unwrap());
    }
}

fn measure(device: Device, [batch, seq, heads, kv_heads, width, value_width]: [usize; 6]) {
    let arena = Arena::on(device).unwrap();
    let dtype = if device == Device::Cpu { DType::F32 } else { DType::Bf16 };
    let mut state = 1u64;
    let mut random = |count: usize, width: usize| -> Tensor {
        let mut tensor = arena.tensor(batch * seq, count * width, dtype);
        // Sums of four uniform numbers are near enough to a normal distribution.
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let values: Vec<f32> =
            (0..tensor.len()).map(|_| 0.866 * (uniform() + uniform() + uniform() + uniform())).collect();
        tensor.write(&values);
        tensor
    };
    let (q, k, v) = (random(heads, width), random(kv_heads, width), random(kv_heads, value_width));
    let d_out = random(heads, value_width);
    let like = |tensor: &Tensor| arena.tensor(tensor.rows(), tensor.cols(), dtype);
    let (out, dq, dk, dv) = (like(&d_out), like(&q), like(&k), like(&v));
    let mut lse = arena.tensor(batch * heads, seq, DType::F32);
    let [q, out, d_out, dq] = [&q, &out, &d_out, &dq].map(|tensor| Heads::packed(tensor, heads));
    let [k, v, dk, dv] = [&k, &v, &dk, &dv].map(|tensor| Heads::packed(tensor, kv_heads));
    let shape = Shape { batch, seq, scale: (width as f32).powf(-0.5), alibi: None, doc_starts: None };
    let product = (batch * heads * seq * (seq + 1)) as f64;
    let time = |work: &mut dyn FnMut()| {
        work();
        device.synchronize();
        let mut rounds: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                for _ in 0..ROUNDS {
                    work();
                }
                device.synchronize();
                1e3 * start.elapsed().as_secs_f64() / ROUNDS as f64
            })
            .collect();
        rounds.sort_by(f64::total_cmp);
        rounds[ROUNDS / 2]
    };
    let forth = time(&mut || forward(q, k, v, &shape, out, &mut lse));
    let to = |heads| Gradient { heads, accumulate: false };
    let back = time(&mut || backward(q, k, v, out, d_out, &lse, &shape, to(dq), to(dk), to(dv)));
    let (e, d) = (value_width as f64, width as f64);
    println!(
        "{{\"batch\": {batch}, \"seq\": {seq}, \"heads\": {heads}, \"kv_heads\": {kv_heads}, \"width\": {width}, \
         \"value_width\": {value_width}, \"forward_ms\": {forth:.3}, \"forward_tflops\": {:.0}, \"backward_ms\": {back:.3}, \
         \"backward_tflops\": {:.0}}}",
        product * (d + e) / forth / 1e9,
        product * (3.0 * d + 2.0 * e) / back / 1e9,
    );
}
