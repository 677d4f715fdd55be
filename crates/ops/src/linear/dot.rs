//! A few rows by a whole weight: every weight is read once, where it lies, as dot products of adjacent elements.
//!
//! Nothing is packed, so that the time is that of reading the weight. An output is one sum in an order that depends on
//! the width alone.

use crate::{parallel::brief, simd::prefetch};
use half::bf16;
use keyfold_core::DType;
use keyfold_tensor::Tensor;
use pulp::{Arch, NullaryFnOnce, Simd, WithSimd};
use std::{cell::Cell, marker::PhantomData};

/// Most rows of `x` for which this beats packing.
pub(super) const MAX_ROWS: usize = 16;
/// The same where few rows can go through tiles.
pub(super) const MAX_ROWS_BESIDE_TILES: usize = 12;
/// Rows of the weight in one tile, and rows of `x`.
const NW: usize = 4;
const NX: usize = 4;
/// Weights from what is read to what is asked for, at most.
const AHEAD: usize = 4096;
/// Multiply-adds of one task, at least; reading a weight costs as much as two of them.
const MIN_WORK: usize = 1 << 14;
/// Tasks for each thread, at most: so that one that is late leaves some to the others.
const TASKS: usize = 16;

/// `out (+)= x w^T` of checked shapes.
pub(super) fn forward(arch: Arch, x: &Tensor, w: &Tensor, out: &mut Tensor, accumulate: bool) {
    let (rows, k, features) = (x.rows(), x.cols(), w.rows());
    let mut job = Job {
        x: x.as_ptr(),
        x_stride: x.stride(),
        rows,
        k,
        w: match w.dtype() {
            DType::F32 => Weight::F32(w.as_ptr()),
            DType::Bf16 => Weight::Bf16(w.as_mut_bf16_ptr()),
            other => other.unsupported("linear"),
        },
        first: 0,
        features,
        out: out.as_mut_ptr(),
        out_stride: out.stride(),
        accumulate,
    };
    let mut sorted = Vec::new();
    if let Weight::Bf16(_) = job.w {
        sorted = EVEN_ODD.take();
        sorted.resize(rows * k, 0.0);
        arch.dispatch(EvenOdd { job, sorted: &mut sorted });
        (job.x, job.x_stride) = (sorted.as_ptr(), k);
    }
    let groups = features.div_ceil(NW);
    let tasks = features * k * rows.max(2) / MIN_WORK;
    let tasks = tasks.min(rayon::current_num_threads() * TASKS).clamp(1, groups.max(1));
    brief(tasks, |task| {
        let first = groups * task / tasks * NW;
        let end = (groups * (task + 1) / tasks * NW).min(features);
        arch.dispatch(job.part(first, end));
    });
    if !sorted.is_empty() {
        EVEN_ODD.set(sorted);
    }
}

#[derive(Clone, Copy)]
enum Weight {
    F32(*const f32),
    Bf16(*const bf16),
}

/// Features `first .. features` of all rows.
#[derive(Clone, Copy)]
struct Job {
    x: *const f32,
    x_stride: usize,
    rows: usize,
    k: usize,
    w: Weight,
    first: usize,
    features: usize,
    out: *mut f32,
    out_stride: usize,
    accumulate: bool,
}

// SAFETY: threads read shared memory and write disjoint columns of `out`.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

thread_local! {
    static EVEN_ODD: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

impl WithSimd for Job {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.w {
            // SAFETY: the job's pointers are good for its shape.
            Weight::F32(w) => unsafe { self.features::<S, Whole>(simd, w) },
            // SAFETY: as above.
            Weight::Bf16(w) => unsafe { self.features::<S, Pairs>(simd, w) },
        }
    }
}

/// Sorts the rows of `x` as [`Pairs`] needs them: a word of the weight holds two neighbours, which are widened to
/// vectors of even and of odd columns.
struct EvenOdd<'a> {
    job: Job,
    sorted: &'a mut [f32],
}

impl WithSimd for EvenOdd<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        simd.vectorize(Sort::<S> { order: self, lanes: PhantomData });
    }
}

struct Sort<'a, S> {
    order: EvenOdd<'a>,
    lanes: PhantomData<S>,
}

impl<S: Simd> NullaryFnOnce for Sort<'_, S> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let EvenOdd { job, sorted } = self.order;
        let body = job.k / (2 * S::F32_LANES) * (2 * S::F32_LANES);
        for (row, sorted) in sorted.chunks_exact_mut(job.k.max(1)).enumerate() {
            // SAFETY: `x` has this row.
            let x = unsafe { std::slice::from_raw_parts(job.x.add(row * job.x_stride), job.k) };
            let (blocks, rest) = sorted.split_at_mut(body);
            for (x, sorted) in x.chunks_exact(2 * S::F32_LANES).zip(blocks.chunks_exact_mut(2 * S::F32_LANES))
            {
                let (even, odd) = sorted.split_at_mut(S::F32_LANES);
                for i in 0..S::F32_LANES {
                    even[i] = x[2 * i];
                    odd[i] = x[2 * i + 1];
                }
            }
            rest.copy_from_slice(&x[body..]);
        }
    }
}

impl Job {
    /// Features `first .. end`. (A method, so that closures capture the whole job.)
    fn part(self, first: usize, end: usize) -> Self {
        Self { first, features: end, ..self }
    }

    #[inline(always)]
    unsafe fn features<S: Simd, F: Format>(self, simd: S, w: *const F::Stored) {
        let (x, x_stride) = (self.x, self.x_stride);
        for feature in (self.first..self.features).step_by(NW) {
            for row in (0..self.rows).step_by(NX) {
                let tile = Tile::<F> {
                    k: self.k,
                    x: x.wrapping_add(row * x_stride),
                    x_stride,
                    w: w.wrapping_add(feature * self.k),
                    features: NW.min(self.features - feature),
                    out: self.out.wrapping_add(row * self.out_stride + feature),
                    out_stride: self.out_stride,
                    accumulate: self.accumulate,
                };
                match self.rows - row {
                    1 => simd.vectorize(Micro::<S, F, 1> { simd, tile }),
                    2 => simd.vectorize(Micro::<S, F, 2> { simd, tile }),
                    3 => simd.vectorize(Micro::<S, F, 3> { simd, tile }),
                    _ => simd.vectorize(Micro::<S, F, NX> { simd, tile }),
                }
            }
        }
    }
}

/// How vectors are made of stored weights.
trait Format {
    type Stored: Copy;
    /// Vectors made at once.
    const VECTORS: usize;

    /// `VECTORS` vectors of the weights from `from` on.
    unsafe fn load<S: Simd>(simd: S, from: *const Self::Stored) -> [S::f32s; 2];
    fn widen(stored: Self::Stored) -> f32;
}

struct Whole;

impl Format for Whole {
    type Stored = f32;
    const VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const f32) -> [S::f32s; 2] {
        // SAFETY: the caller has a vector there.
        [unsafe { from.cast::<S::f32s>().read_unaligned() }, simd.splat_f32s(0.0)]
    }

    #[inline(always)]
    fn widen(stored: f32) -> f32 {
        stored
    }
}

struct Pairs;

impl Format for Pairs {
    type Stored = bf16;
    const VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const bf16) -> [S::f32s; 2] {
        // SAFETY: the caller has two vectors of bf16, one of words, there.
        let words = unsafe { from.cast::<S::u32s>().read_unaligned() };
        let even = simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(16));
        let odd = simd.and_u32s(words, simd.splat_u32s(0xffff_0000));
        [simd.transmute_f32s_u32s(even), simd.transmute_f32s_u32s(odd)]
    }

    #[inline(always)]
    fn widen(stored: bf16) -> f32 {
        stored.to_f32()
    }
}

struct Tile<F: Format> {
    k: usize,
    x: *const f32,
    x_stride: usize,
    w: *const F::Stored,
    features: usize,
    out: *mut f32,
    out_stride: usize,
    accumulate: bool,
}

/// `R` rows by up to [`NW`] features.
struct Micro<S, F: Format, const R: usize> {
    simd: S,
    tile: Tile<F>,
}

impl<S: Simd, F: Format, const R: usize> NullaryFnOnce for Micro<S, F, R> {
    type Output = ();

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "loops with constant bounds keep arrays in registers")]
    fn call(self) {
        let Self { simd, tile } = self;
        let step = F::VECTORS * S::F32_LANES;
        let body = tile.k / step * step;
        // Hardware stops at the end of a page, and mapped files have small ones.
        let ahead = (NW * tile.k).min(AHEAD);
        // A feature beyond the last reads the last again.
        let w: [_; NW] = std::array::from_fn(|f| tile.w.wrapping_add(f.min(tile.features - 1) * tile.k));
        let mut acc = [[simd.splat_f32s(0.0); NW]; R];
        // SAFETY: rows and features are `k` long.
        unsafe {
            for p in (0..body).step_by(step) {
                let mut x = [[simd.splat_f32s(0.0); 2]; R];
                for r in 0..R {
                    for v in 0..F::VECTORS {
                        let from = tile.x.add(r * tile.x_stride + p + v * S::F32_LANES);
                        x[r][v] = from.cast::<S::f32s>().read_unaligned();
                    }
                }
                for f in 0..NW {
                    prefetch(w[f].wrapping_add(p + ahead));
                    let w = F::load(simd, w[f].add(p));
                    for r in 0..R {
                        for v in 0..F::VECTORS {
                            acc[r][f] = simd.mul_add_e_f32s(x[r][v], w[v], acc[r][f]);
                        }
                    }
                }
            }
            let mut sums = [[0f32; NW]; R];
            for r in 0..R {
                for f in 0..NW {
                    sums[r][f] = simd.reduce_sum_f32s(acc[r][f]);
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (f, &sum) in sums.iter().enumerate().take(tile.features) {
                    let rest =
                        (body..tile.k).map(|p| *tile.x.add(r * tile.x_stride + p) * F::widen(*w[f].add(p)));
                    let sum = sum + rest.sum::<f32>();
                    let out = tile.out.add(r * tile.out_stride + f);
                    *out = if tile.accumulate { *out + sum } else { sum };
                }
            }
        }
    }
}
