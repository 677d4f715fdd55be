//! How fast memory can be read: what bounds decoding, which reads every weight and every cached token once.

use crate::simd::{Kernel, Rows, for_lanes, launch, sum};
use keyfold_core::DType;
use keyfold_tensor::Arena;
use pulp::Simd;
use std::{hint::black_box, ops::Range, time::Instant};

/// Readings, of which the fastest counts, as in STREAM.
const READINGS: usize = 9;
/// Floats of a row: what a thread reads in one go.
const ROW: usize = 1 << 18;

/// Bytes per second at which all threads together read a buffer of about `bytes`, in whole MiB: of caches where it fits
/// into them, else of memory.
pub fn read(bytes: u64) -> f64 {
    let rows = (bytes as usize / (ROW * size_of::<f32>())).max(1);
    let arena = Arena::new();
    let (values, sums) = (arena.tensor(rows, ROW, DType::F32), arena.tensor(rows, 1, DType::F32));
    let (values, sums) = (Rows::of(&values), Rows::of(&sums));
    // Pages exist only once they are written; each thread writes about what it reads later.
    launch(rows, 1, &Fill { values });
    let mut best = 0f64;
    for _ in 0..READINGS {
        let start = Instant::now();
        launch(rows, 1, &Read { values, sums });
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        // SAFETY: the first row's sum has just been written.
        black_box(unsafe { *sums.row(0) });
        best = best.max((rows * ROW * size_of::<f32>()) as f64 / seconds);
    }
    best
}

struct Fill {
    values: Rows,
}

impl Kernel for Fill {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        for row in rows {
            for_lanes(
                simd,
                ROW,
                #[inline(always)]
                // SAFETY: `rows` are rows of `ROW` floats; each has one writer.
                |lanes| unsafe { lanes.store(simd, self.values.row(row), simd.splat_f32s(1.0)) },
            );
        }
    }
}

struct Read {
    values: Rows,
    sums: Rows,
}

impl Kernel for Read {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        for row in rows {
            // SAFETY: as above; a row has one sum.
            unsafe {
                let values = self.values.row(row);
                *self.sums.row(row) = sum(
                    simd,
                    ROW,
                    #[inline(always)]
                    |sum, lanes| simd.add_f32s(sum, lanes.load(simd, values)),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::on_every_isa;

    #[test]
    fn every_float_is_read() {
        on_every_isa(|| {
            let arena = Arena::poisoned();
            let (values, sums) = (arena.tensor(3, ROW, DType::F32), arena.tensor(3, 1, DType::F32));
            let rows = Rows::of(&values);
            launch(3, 1, &Fill { values: rows });
            launch(3, 1, &Read { values: rows, sums: Rows::of(&sums) });
            assert_eq!(sums.to_vec(), [ROW as f32; 3]);
        });
    }

    #[test]
    fn any_size_has_a_rate() {
        for bytes in [0, 1, 5 << 20] {
            let rate = read(bytes);
            assert!(rate > 1e6 && rate.is_finite(), "{bytes} bytes: {rate}");
        }
    }
}
