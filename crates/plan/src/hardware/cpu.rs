//! This machine: how fast it reads memory, and how fast it multiplies matrices.

use super::{CPU, Hardware};
use keyfold_core::DType;
use keyfold_ops::{
    bandwidth,
    gemm::{View, ViewMut, gemm},
};
use keyfold_tensor::Arena;
use std::time::{Duration, Instant};

/// Bytes that are read: larger than caches are.
const READ: u64 = 1 << 29;
/// Side of the matrices.
const SIDE: usize = 1024;
/// How long each measurement goes on.
const PATIENCE: Duration = Duration::from_millis(500);

pub(super) fn measure() -> Hardware {
    let arena = Arena::new();
    let (a, mut out) = (arena.tensor(SIDE, SIDE, DType::F32), arena.tensor(SIDE, SIDE, DType::F32));
    let [b, half] = [DType::F32, DType::Bf16].map(|dtype| arena.tensor(SIDE, SIDE, dtype));
    // Not zeros: matrix units are faster on those.
    let values: Vec<f32> = (0..SIDE * SIDE).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
    for mut tensor in [a.clone(), b.clone(), half.clone()] {
        tensor.write(&values);
    }
    let work = 2.0 * (SIDE as f64).powi(3);
    let f32_flops = best(|| (gemm(ViewMut::of(&mut out), false, 1.0, View::of(&a), View::of(&b).t()), work));
    let bf16_flops =
        best(|| (gemm(ViewMut::of(&mut out), false, 1.0, View::of(&a), View::of_bf16(&half).t()), work));
    Hardware {
        name: format!("{CPU} ({} threads)", rayon::current_num_threads()),
        memory: memory(),
        bandwidth: bandwidth::read(READ),
        bf16_flops,
        fp8_flops: None,
        f32_flops: Some(f32_flops),
    }
}

/// The best rate of `work`, which tells how much it did.
fn best<T>(mut work: impl FnMut() -> (T, f64)) -> f64 {
    let start = Instant::now();
    let mut rate: f64 = 0.0;
    while rate == 0.0 || start.elapsed() < PATIENCE {
        let before = Instant::now();
        let (result, amount) = work();
        std::hint::black_box(result);
        rate = rate.max(amount / before.elapsed().as_secs_f64().max(1e-9));
    }
    rate
}

/// Bytes of memory, where the system tells.
fn memory() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}
