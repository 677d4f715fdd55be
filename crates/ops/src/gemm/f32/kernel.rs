//! One tile of `out` in registers.

use pulp::{NullaryFnOnce, Simd};

/// Steps of k by which a panel of `b` is asked for ahead of its use: it streams from the second-level cache.
const AHEAD: usize = 12;
/// Most rows of a tile.
pub(super) const MR: usize = 6;

/// Most columns of a tile: four vectors of AVX-512.
const MAX_WIDTH: usize = 64;

/// A tile of `rows` x `cols`, at most [`MR`] rows and four vectors.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) k: usize,
    /// Packed: [k, MR]; else rows `a_stride` apart.
    pub(super) a: *const f32,
    pub(super) a_stride: usize,
    pub(super) a_packed: bool,
    /// [k, cols rounded up to vectors].
    pub(super) b: *const f32,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    pub(super) add: bool,
    pub(super) alpha: f32,
}

impl Tile {
    /// Computes the tile.
    ///
    /// # Safety
    /// The pointers must be good for the shape.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(self, simd: S) {
        match self.cols.div_ceil(S::F32_LANES) {
            // SAFETY: as for this function.
            1 => unsafe { self.with_vectors::<S, 1>(simd) },
            // SAFETY: as for this function.
            2 => unsafe { self.with_vectors::<S, 2>(simd) },
            // SAFETY: as for this function.
            3 => unsafe { self.with_vectors::<S, 3>(simd) },
            // SAFETY: as for this function.
            _ => unsafe { self.with_vectors::<S, 4>(simd) },
        }
    }

    #[inline(always)]
    unsafe fn with_vectors<S: Simd, const NV: usize>(self, simd: S) {
        if self.a_packed {
            // SAFETY: as for this function.
            unsafe { self.with_rows::<S, MR, NV, true>(simd) }
        } else {
            // SAFETY: as for this function.
            unsafe {
                match self.rows {
                    1 | 2 => self.with_rows::<S, 2, NV, false>(simd),
                    3 | 4 => self.with_rows::<S, 4, NV, false>(simd),
                    _ => self.with_rows::<S, MR, NV, false>(simd),
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn with_rows<S: Simd, const M: usize, const NV: usize, const PACKED: bool>(self, simd: S) {
        let width = NV * S::F32_LANES;
        if self.rows == M && self.cols == width {
            return simd.vectorize(Micro::<S, M, NV, PACKED> { simd, tile: self });
        }
        // A tile at the edge is computed whole, aside. (Masked stores in the kernel cost it its registers.)
        let mut aside = [0f32; MR * MAX_WIDTH];
        let tile = Self { out: aside.as_mut_ptr(), out_stride: width, add: false, ..self };
        simd.vectorize(Micro::<S, M, NV, PACKED> { simd, tile });
        for (r, from) in aside.chunks_exact(width).take(self.rows).enumerate() {
            // SAFETY: the tile has this row, `cols` long.
            let to = unsafe { std::slice::from_raw_parts_mut(self.out.add(r * self.out_stride), self.cols) };
            if self.add {
                to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
            } else {
                to.copy_from_slice(&from[..self.cols]);
            }
        }
    }
}

struct Micro<S, const M: usize, const NV: usize, const PACKED: bool> {
    simd: S,
    tile: Tile,
}

impl<S: Simd, const M: usize, const NV: usize, const PACKED: bool> NullaryFnOnce for Micro<S, M, NV, PACKED> {
    type Output = ();

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "loops with constant bounds keep arrays in registers")]
    fn call(self) {
        let Self { simd, tile } = self;
        let lanes = S::F32_LANES;
        // SAFETY: the tile's pointers are good for its shape; a row beyond the last reads the last again.
        unsafe {
            let rows: [*const f32; M] =
                std::array::from_fn(|r| tile.a.add(r.min(tile.rows - 1) * tile.a_stride));
            for r in 0..M {
                for v in 0..NV {
                    prefetch(tile.out.add(r * tile.out_stride + v * lanes));
                }
            }
            let mut acc = [[simd.splat_f32s(0.0); NV]; M];
            let mut b = tile.b;
            let mut p = 0;
            while p < tile.k {
                let mut row = [simd.splat_f32s(0.0); NV];
                for v in 0..NV {
                    if !PACKED {
                        prefetch(b.wrapping_add(v * lanes + NV * lanes * AHEAD));
                    }
                    row[v] = b.add(v * lanes).cast::<S::f32s>().read_unaligned();
                }
                for r in 0..M {
                    let x = simd.splat_f32s(if PACKED { *tile.a.add(p * M + r) } else { *rows[r].add(p) });
                    for v in 0..NV {
                        acc[r][v] = simd.mul_add_e_f32s(x, row[v], acc[r][v]);
                    }
                }
                b = b.add(NV * lanes);
                p += 1;
            }
            let alpha = simd.splat_f32s(tile.alpha);
            for r in 0..M {
                for v in 0..NV {
                    let place = tile.out.add(r * tile.out_stride + v * lanes).cast::<S::f32s>();
                    let mut value = simd.mul_f32s(acc[r][v], alpha);
                    if tile.add {
                        value = simd.add_f32s(place.read_unaligned(), value);
                    }
                    place.write_unaligned(value);
                }
            }
        }
    }
}

/// Asks for the line at `ptr`: a tile's part of `out` is first touched after all its multiplications.
#[inline(always)]
pub(super) fn prefetch<T>(ptr: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on caches.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(ptr.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}
