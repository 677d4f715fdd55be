//! What a device can do at most, measured beside what is done: copying and multiplying; and random values to do it with.

use keyfold_core::DType;
use keyfold_ops::{cast, fp8, indices::Indices, linear};
use keyfold_tensor::{Arena, Device, Tensor};
use std::time::Instant;

/// Seconds of measurement of a case, unless another number is asked for.
pub(super) const SECONDS: f64 = 0.1;
/// Values drawn at random; larger tensors repeat them.
const DRAWN: usize = 1 << 20;

/// Numbers that look random, the same every time.
pub(super) fn draw(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A device and random values on it.
pub(super) struct Ceilings {
    device: Device,
    arena: Arena,
    /// `[DRAWN / 1024, 1024]` bf16, uniform in -1 to 1.
    drawn: Tensor,
    /// Of measurement of a case.
    seconds: f64,
}

/// Seconds of a call: five measurements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) fastest: f64,
    pub(super) median: f64,
    pub(super) slowest: f64,
}

impl Ceilings {
    pub(super) fn new(device: Device, seconds: f64) -> anyhow::Result<Self> {
        let arena = Arena::on(device)?;
        let mut state = 0x9E37_79B9_7F4A_7C15;
        let values: Vec<f32> =
            (0..DRAWN).map(|_| (draw(&mut state) >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect();
        let mut drawn = arena.tensor(DRAWN / 1024, 1024, DType::Bf16);
        drawn.write(&values);
        Ok(Self { device, arena, drawn, seconds })
    }

    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// A bf16 matrix that repeats what was drawn.
    pub(super) fn random(&self, rows: usize, cols: usize) -> Tensor {
        let (size, step) = (rows * cols, self.drawn.cols());
        // Whole rows of what was drawn, of which the matrix is the beginning.
        let all = self.arena.tensor(size.div_ceil(step), step, DType::Bf16);
        let mut at = 0;
        while at < all.rows() {
            let count = self.drawn.rows().min(all.rows() - at);
            cast::copy(&self.drawn.row_range(0, count), &mut all.row_range(at, count));
            at += count;
        }
        all.reshape(1, all.len()).columns(0, size).reshape(rows, cols)
    }

    /// Fills a contiguous tensor with what was drawn, times `factor`.
    pub(super) fn fill(&self, tensor: &Tensor, factor: f32) {
        let flat = tensor.reshape(1, tensor.len());
        let scaled = self.arena.tensor(1, DRAWN, DType::Bf16);
        keyfold_ops::add::scale(&self.drawn.reshape(1, DRAWN), factor, &mut scaled.clone(), false);
        for start in (0..flat.len()).step_by(DRAWN) {
            let count = DRAWN.min(flat.len() - start);
            cast::copy(&scaled.columns(0, count), &mut flat.columns(start, count));
        }
    }

    /// Fills the rows of a cache of 8 bits, which have `elements` elements, with random values; `sharing` columns each have one
    /// scale.
    pub(super) fn fill_rows(&self, memory: &Tensor, elements: usize, sharing: usize) {
        const TOGETHER: usize = 1 << 14;
        let drawn = self.random(TOGETHER.min(memory.rows()), elements);
        let [values, scales] = fp8::Rows::split(memory, elements);
        let rows = fp8::Rows { values: &values, scales: &scales };
        for first in (0..memory.rows()).step_by(TOGETHER) {
            let at: Vec<u32> = (first as u32..(first + TOGETHER).min(memory.rows()) as u32).collect();
            let at = Indices::new(&self.arena, at);
            fp8::store(&drawn.row_range(0, at.len()), &at, rows, sharing);
        }
    }

    /// What `work` takes, which is told how often it ran before. Calls follow each other without waiting, as the layers of a
    /// step do.
    pub(super) fn time(&self, mut work: impl FnMut(usize)) -> Times {
        let mut count = 0;
        let mut run = |times: usize| {
            self.device.synchronize();
            let start = Instant::now();
            for _ in 0..times {
                work(count);
                count += 1;
            }
            self.device.synchronize();
            start.elapsed().as_secs_f64() / times as f64
        };
        run(3);
        let times = (self.seconds / 5.0 / run(5).max(1e-5)).ceil().max(5.0) as usize;
        let mut all: Vec<f64> = (0..5).map(|_| run(times)).collect();
        all.sort_by(f64::total_cmp);
        Times { fastest: all[0], median: all[2], slowest: all[4] }
    }

    /// Bytes a second of a plain copy, reading and writing together.
    pub(super) fn copy(&self) -> f64 {
        let x = self.random(1 << 19, 1024);
        let mut y = self.arena.tensor(x.rows(), x.cols(), DType::Bf16);
        let seconds = self.time(|_| cast::copy(&x, &mut y)).median;
        2.0 * (x.len() * 2) as f64 / seconds
    }

    /// Operations a second of a square product of bf16 matrices.
    pub(super) fn matmul(&self) -> f64 {
        let size = 8192;
        let (x, w) = (self.random(size, size), self.random(size, size));
        let mut y = self.arena.tensor(size, size, DType::Bf16);
        let seconds = self.time(|_| linear::forward(&x, &w, None, &mut y, false)).median;
        2.0 * (size as f64).powi(3) / seconds
    }
}
