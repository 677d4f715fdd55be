//! What the CPU kernels share: vectors with a masked tail, `exp`, launching over row blocks, scratch memory.
//!
//! A kernel is written once, over [`pulp::Simd`]; [`launch`] picks the instruction set at run time and splits the rows
//! over threads. Rows are walked in [`Lanes`]: whole vectors, then one masked vector, so that no kernel has a scalar
//! tail. Pointers are raw because many ops work in place: the operands may be the same memory.

mod column_sums;

pub(crate) use column_sums::{Blocks, ColumnSums};

use crate::parallel::for_each_row_block;
use keyfold_core::DType;
use keyfold_tensor::{Arena, Tensor, bf16};
use pulp::{Arch, MemMask, Simd, WithSimd};
use std::{ops::Range, sync::LazyLock};

/// Elements one task of a memory-bound kernel should touch: below this a parallel region costs more than it saves.
pub(crate) const BLOCK_ELEMENTS: usize = 16 * 1024;

/// Rows a task gets so that it touches about [`BLOCK_ELEMENTS`]. It depends on the shape alone, never on the threads.
pub(crate) fn block_rows(cols: usize) -> usize {
    (BLOCK_ELEMENTS / cols.max(1)).max(1)
}

/// Work on a range of rows with the vectors of `S`.
pub(crate) trait Kernel: Sync {
    /// Handles `rows`. Implementations are `#[inline(always)]`, as is every function they call: what is not inlined is
    /// not compiled for the instruction set.
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>);
}

/// Asks for the line at `place` to be brought near; `place` need not be memory.
#[inline(always)]
pub(crate) fn prefetch<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction, which accesses nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Runs `kernel` on `0..rows` in blocks of `block` rows, over the current threads, with the best instruction set.
pub(crate) fn launch(rows: usize, block: usize, kernel: &impl Kernel) {
    struct Bound<'a, K>(&'a K, Range<usize>);
    impl<K: Kernel> WithSimd for Bound<'_, K> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            self.0.run(simd, self.1);
        }
    }
    #[cfg(test)]
    match ISA.get() {
        Isa::Best => {}
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(v3) => {
            return for_each_row_block(rows, block, |rows| Simd::vectorize(v3, Bound(kernel, rows)));
        }
        Isa::Scalar => {
            return for_each_row_block(rows, block, |rows| {
                Bound(kernel, rows).with_simd(pulp::Scalar::new())
            });
        }
    }
    for_each_row_block(rows, block, |rows| Arch::new().dispatch(Bound(kernel, rows)));
}

/// What [`launch`] uses, on this thread.
#[cfg(test)]
#[derive(Clone, Copy)]
enum Isa {
    Best,
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    Scalar,
}

#[cfg(test)]
thread_local! {
    static ISA: std::cell::Cell<Isa> = const { std::cell::Cell::new(Isa::Best) };
}

/// Runs `test` once for each instruction set that this machine has: the best one, AVX2 on x86-64, and none.
#[cfg(test)]
pub(crate) fn on_every_isa(test: impl Fn()) {
    let mut sets = vec![Isa::Scalar, Isa::Best];
    #[cfg(target_arch = "x86_64")]
    sets.extend(pulp::x86::V3::try_new().map(Isa::Avx2));
    for isa in sets {
        ISA.set(isa);
        test();
    }
    ISA.set(Isa::Best);
}

/// Where the rows of a tensor lie: its address, read once per op instead of once per row.
#[derive(Clone, Copy)]
pub(crate) struct Rows<T = f32> {
    start: *mut T,
    stride: usize,
}

// SAFETY: a place, not an access; whoever dereferences it splits the rows among threads (`Kernel::run`).
unsafe impl<T> Send for Rows<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Rows<T> {}

impl Rows {
    /// The rows of an f32 tensor, which must outlive the use.
    pub(crate) fn of(tensor: &Tensor) -> Self {
        Self { start: tensor.as_mut_ptr(), stride: tensor.stride() }
    }
}

impl Rows<bf16> {
    /// The rows of a bf16 tensor, which must outlive the use.
    pub(crate) fn of_bf16(tensor: &Tensor) -> Self {
        Self { start: tensor.as_mut_bf16_ptr(), stride: tensor.stride() }
    }
}

impl<T> Rows<T> {
    /// Address of the first element of `row`.
    ///
    /// # Safety
    /// `row` must be a row of the tensor.
    #[inline(always)]
    pub(crate) unsafe fn row(self, row: usize) -> *mut T {
        // SAFETY: the caller names an existing row, which lies within the buffer.
        unsafe { self.start.add(row * self.stride) }
    }
}

/// One vector's worth of consecutive elements of a row, perhaps cut off by the row's end.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<S: Simd> {
    start: usize,
    mask: MemMask<S::m32s>,
    whole: bool,
}

impl<S: Simd> Lanes<S> {
    /// The elements of the row that starts at `row`; zero beyond its end.
    ///
    /// # Safety
    /// The row's elements must be readable.
    #[inline(always)]
    pub(crate) unsafe fn load(self, simd: S, row: *const f32) -> S::f32s {
        // SAFETY: the lanes lie within the row, by `for_lanes` and `fold`; masked lanes are not accessed.
        unsafe {
            let ptr = row.add(self.start);
            if self.whole {
                ptr.cast::<S::f32s>().read_unaligned()
            } else {
                simd.mask_load_ptr_f32s(self.mask, ptr)
            }
        }
    }

    /// Writes the elements of the row that starts at `row`; nothing beyond its end.
    ///
    /// # Safety
    /// The row's elements must be writable.
    #[inline(always)]
    pub(crate) unsafe fn store(self, simd: S, row: *mut f32, values: S::f32s) {
        // SAFETY: as in `load`.
        unsafe {
            let ptr = row.add(self.start);
            if self.whole {
                ptr.cast::<S::f32s>().write_unaligned(values);
            } else {
                simd.mask_store_ptr_f32s(self.mask, ptr, values);
            }
        }
    }

    /// Stores `values`, added to what is there when `accumulate` is set.
    ///
    /// # Safety
    /// As for [`Lanes::store`].
    #[inline(always)]
    pub(crate) unsafe fn put(self, simd: S, row: *mut f32, values: S::f32s, accumulate: bool) {
        // SAFETY: the caller's.
        unsafe {
            let values = if accumulate { simd.add_f32s(self.load(simd, row), values) } else { values };
            self.store(simd, row, values);
        }
    }

    /// `values` within the row, `fill` beyond its end.
    #[inline(always)]
    pub(crate) fn fill(self, simd: S, values: S::f32s, fill: f32) -> S::f32s {
        if self.whole { values } else { simd.select_f32s(self.mask.mask(), values, simd.splat_f32s(fill)) }
    }
}

/// Calls `body` for the lanes of a row of `len` elements, in order. Pass an `#[inline(always)]` closure.
#[inline(always)]
pub(crate) fn for_lanes<S: Simd>(simd: S, len: usize, mut body: impl FnMut(Lanes<S>)) {
    let all = simd.mask_between_m32s(0, S::F32_LANES as u32);
    let mut start = 0;
    while start + S::F32_LANES <= len {
        body(Lanes { start, mask: all, whole: true });
        start += S::F32_LANES;
    }
    if start < len {
        body(Lanes { start, mask: simd.mask_between_m32s(0, (len - start) as u32), whole: false });
    }
}

/// Folds the lanes of a row of `len` elements into one vector, by way of four, which hides the latency of `step`.
#[inline(always)]
pub(crate) fn fold<S: Simd>(
    simd: S,
    len: usize,
    zero: S::f32s,
    mut step: impl FnMut(S::f32s, Lanes<S>) -> S::f32s,
    merge: impl Fn(S::f32s, S::f32s) -> S::f32s,
) -> S::f32s {
    let lanes = S::F32_LANES;
    let mask = simd.mask_between_m32s(0, lanes as u32);
    let mut sums = [zero; 4];
    let mut start = 0;
    while start + 4 * lanes <= len {
        sums[0] = step(sums[0], Lanes { start, mask, whole: true });
        sums[1] = step(sums[1], Lanes { start: start + lanes, mask, whole: true });
        sums[2] = step(sums[2], Lanes { start: start + 2 * lanes, mask, whole: true });
        sums[3] = step(sums[3], Lanes { start: start + 3 * lanes, mask, whole: true });
        start += 4 * lanes;
    }
    while start + lanes <= len {
        sums[0] = step(sums[0], Lanes { start, mask, whole: true });
        start += lanes;
    }
    if start < len {
        let mask = simd.mask_between_m32s(0, (len - start) as u32);
        sums[1] = step(sums[1], Lanes { start, mask, whole: false });
    }
    merge(merge(sums[0], sums[1]), merge(sums[2], sums[3]))
}

/// Sum over a row of `len` elements, where `step` adds the lanes' terms to a running vector. Terms beyond the row's end
/// must be zero.
#[inline(always)]
pub(crate) fn sum<S: Simd>(simd: S, len: usize, step: impl FnMut(S::f32s, Lanes<S>) -> S::f32s) -> f32 {
    let sums = fold(
        simd,
        len,
        simd.splat_f32s(0.0),
        step,
        #[inline(always)]
        |a, b| simd.add_f32s(a, b),
    );
    simd.reduce_sum_f32s(sums)
}

/// Dot product of two rows of `len` elements.
///
/// # Safety
/// Both rows must be readable.
#[inline(always)]
pub(crate) unsafe fn dot<S: Simd>(simd: S, len: usize, a: *const f32, b: *const f32) -> f32 {
    sum(
        simd,
        len,
        #[inline(always)]
        // SAFETY: the caller's.
        |sum, lanes| unsafe { simd.mul_add_e_f32s(lanes.load(simd, a), lanes.load(simd, b), sum) },
    )
}

/// `e^x` to about 1 unit in the last place. Below -87.33 it is 0 and above 88.37 infinite, so that the result is never
/// subnormal; NaN stays NaN.
///
/// Cody-Waite reduction to `|r| <= ln(2)/2` and the minimax polynomial of Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding 1.5 * 2^23 rounds to an integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln(2) in two parts. The first has so few bits that its product with an exponent is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const POLYNOMIAL: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

    let splat = |x| simd.splat_f32s(x);
    let rounded = simd.mul_add_e_f32s(x, splat(std::f32::consts::LOG2_E), splat(ROUND));
    let n = simd.sub_f32s(rounded, splat(ROUND));
    let r = simd.mul_add_e_f32s(n, splat(-LN2_HIGH), x);
    let r = simd.mul_add_e_f32s(n, splat(-LN2_LOW), r);
    let mut p = splat(POLYNOMIAL[0]);
    for c in &POLYNOMIAL[1..] {
        p = simd.mul_add_e_f32s(p, r, splat(*c));
    }
    let p = simd.mul_add_e_f32s(p, simd.mul_f32s(r, r), simd.add_f32s(r, splat(1.0)));
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    let y = simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(p), exponent));
    let y = simd.select_f32s(simd.less_than_f32s(x, splat(-87.336_54)), splat(0.0), y);
    simd.select_f32s(simd.greater_than_f32s(x, splat(88.376_25)), splat(f32::INFINITY), y)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    simd.div_f32s(one, simd.add_f32s(one, exp(simd, simd.neg_f32s(x))))
}

/// A matrix of unspecified contents, from a pool that lives as long as the process.
pub(crate) fn scratch(rows: usize, cols: usize) -> Tensor {
    static POOL: LazyLock<Arena> = LazyLock::new(Arena::new);
    POOL.tensor(rows, cols, DType::F32)
}

#[cfg(test)]
mod tests;
