//! The one matrix product of attention: C (+)= A B on blocks that fit the caches.
//!
//! A is read one value at a time through two strides, so that a transposed A costs nothing. B and C are row-major and as
//! wide as whole [`LINE`]s. A tile of C stays in registers for the whole depth: 6 x 64 with AVX-512 (24 of 32 vectors),
//! 6 x 16 with AVX2 (12 of 16). [`Trim`] leaves out what a causal mask hides, tile by tile.

use super::scratch::LINE;
use pulp::{Simd, WithSimd};

/// A of a [`Product`]: element (i, p) lies at `i * row + p * col`; one of the two is 1.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) values: &'a [f32],
    pub(super) row: usize,
    pub(super) col: usize,
}

/// What happens to the old C.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// It is overwritten.
    Zero,
    /// The product is added to it.
    Keep,
    /// Row i is multiplied by factor i, then the product is added.
    Scale(&'a [f32]),
}

/// What a causal mask makes needless, where query `c` of a block sees the keys `j <= c + offset` of a block.
#[derive(Clone, Copy)]
pub(super) enum Trim {
    /// Nothing.
    None,
    /// Rows are keys, columns are queries: the columns of queries before the key.
    Columns(isize),
    /// Rows are keys, depth is queries: the depth of queries before the key.
    DepthFrom(isize),
    /// Rows are queries, depth is keys: the depth of keys after the query.
    DepthTo(isize),
}

/// C (+)= A B, with A `m` x `k`, B `k` x `n`, C `m` x `n`; `n` and the rows of B and C are whole lines.
pub(super) struct Product<'a> {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) a: Left<'a>,
    pub(super) b: &'a [f32],
    pub(super) b_row: usize,
    pub(super) c: &'a mut [f32],
    pub(super) c_row: usize,
    pub(super) start: Start<'a>,
    pub(super) trim: Trim,
}

impl Product<'_> {
    /// Computes the product. Behind a call of its own: its many tiles exist once per instruction set.
    #[inline(always)]
    pub(super) fn run<S: Simd>(self, simd: S) {
        simd.vectorize(self);
    }

    /// Rows per tile: the tile, a row of B and one value of A fill the registers, or there are sums enough to hide the
    /// latency of an addition.
    fn tile_rows<S: Simd>(&self) -> usize {
        match (S::F32_LANES, self.n / LINE) {
            (1, _) => 2,
            (LINE, 1) => 12,
            _ => 6,
        }
    }

    /// Vectors per tile row; times the lanes it divides a line, but for AVX-512, where it is four lines.
    const fn tile_vectors<S: Simd>() -> usize {
        if S::F32_LANES == 8 { 2 } else { 4 }
    }

    fn check(&self) {
        let last =
            |rows: usize, row: usize, width: usize| if rows == 0 { 0 } else { (rows - 1) * row + width };
        let a = &self.a;
        assert!(self.n.is_multiple_of(LINE), "attention product: {} columns are not whole lines", self.n);
        if self.m > 0 && self.k > 0 {
            assert!(
                (self.m - 1) * a.row + (self.k - 1) * a.col < a.values.len(),
                "attention product: A too short"
            );
        }
        assert!(last(self.k, self.b_row, self.n) <= self.b.len(), "attention product: B too short");
        assert!(last(self.m, self.c_row, self.n) <= self.c.len(), "attention product: C too short");
        if let Start::Scale(factors) = self.start {
            assert!(factors.len() >= self.m, "attention product: a factor per row was expected");
        }
    }
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.check();
        let (lanes, rows) = (S::F32_LANES, self.tile_rows::<S>());
        let width = Self::tile_vectors::<S>() * lanes;
        for left in (0..self.n).step_by(width) {
            let right = (left + width).min(self.n);
            for top in (0..self.m).step_by(rows) {
                let bottom = (top + rows).min(self.m);
                let (mut first_column, mut depth) = (left, 0..self.k);
                let before = |row: usize, offset: isize| (row as isize - offset).max(0) as usize;
                match self.trim {
                    Trim::None => {}
                    Trim::Columns(offset) => first_column = left.max(before(top, offset) / LINE * LINE),
                    Trim::DepthFrom(offset) => depth.start = before(top, offset).min(self.k),
                    Trim::DepthTo(offset) => depth.end = before(bottom, -offset).min(self.k),
                }
                if first_column >= right {
                    continue;
                }
                // SAFETY: the tile lies within C, and `check` has seen that A and B reach as far.
                unsafe {
                    let tile = Tile {
                        depth: depth.len(),
                        a: self.a.values.as_ptr().add(top * self.a.row + depth.start * self.a.col),
                        a_row: self.a.row,
                        a_col: self.a.col,
                        b: self.b.as_ptr().add(depth.start * self.b_row + first_column),
                        b_row: self.b_row,
                        c: self.c.as_mut_ptr().add(top * self.c_row + first_column),
                        c_row: self.c_row,
                        start: match self.start {
                            Start::Scale(factors) => Start::Scale(&factors[top..]),
                            other => other,
                        },
                    };
                    match (right - first_column) / lanes {
                        1 if lanes == LINE => tile.rows::<S, 1>(simd, bottom - top),
                        2 if lanes >= 8 => tile.rows::<S, 2>(simd, bottom - top),
                        3 if lanes == LINE => tile.rows::<S, 3>(simd, bottom - top),
                        _ => tile.many::<S>(simd, bottom - top, right - first_column),
                    }
                }
            }
        }
    }
}

/// A tile of C and where its operands start.
#[derive(Clone, Copy)]
struct Tile<'a> {
    depth: usize,
    a: *const f32,
    a_row: usize,
    a_col: usize,
    b: *const f32,
    b_row: usize,
    c: *mut f32,
    c_row: usize,
    start: Start<'a>,
}

impl Tile<'_> {
    #[inline(always)]
    unsafe fn many<S: Simd>(mut self, simd: S, rows: usize, width: usize) {
        let step = 4 * S::F32_LANES;
        for _ in 0..width / step {
            // SAFETY: the caller's; `width` columns are whole steps.
            unsafe {
                self.rows::<S, 4>(simd, rows);
                self.b = self.b.add(step);
                self.c = self.c.add(step);
            }
        }
    }

    #[inline(always)]
    unsafe fn rows<S: Simd, const VECTORS: usize>(self, simd: S, rows: usize) {
        // SAFETY: the caller's: `rows` rows of VECTORS vectors can be reached.
        unsafe {
            match rows {
                1 => self.compute::<S, 1, VECTORS>(simd),
                2 => self.compute::<S, 2, VECTORS>(simd),
                _ if S::IS_SCALAR => {}
                3 => self.compute::<S, 3, VECTORS>(simd),
                4 => self.compute::<S, 4, VECTORS>(simd),
                5 => self.compute::<S, 5, VECTORS>(simd),
                6 => self.compute::<S, 6, VECTORS>(simd),
                _ if VECTORS > 1 || S::F32_LANES < LINE => {}
                7 => self.compute::<S, 7, VECTORS>(simd),
                8 => self.compute::<S, 8, VECTORS>(simd),
                9 => self.compute::<S, 9, VECTORS>(simd),
                10 => self.compute::<S, 10, VECTORS>(simd),
                11 => self.compute::<S, 11, VECTORS>(simd),
                _ => self.compute::<S, 12, VECTORS>(simd),
            }
        }
    }

    #[inline(always)]
    unsafe fn compute<S: Simd, const ROWS: usize, const VECTORS: usize>(self, simd: S) {
        let Self { depth, mut a, a_row, a_col, mut b, b_row, c, c_row, start } = self;
        let lanes = S::F32_LANES;
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        // SAFETY: the caller's: ROWS x depth of A, depth x VECTORS of B and ROWS x VECTORS of C can be reached.
        unsafe {
            // One of A's strides is 1. Saying so keeps address arithmetic off the ports that multiply.
            if a_row == 1 {
                for _ in 0..depth {
                    accumulate::<S, ROWS, VECTORS>(simd, &mut sums, a, 1, b);
                    a = a.add(a_col);
                    b = b.add(b_row);
                }
            } else {
                for _ in 0..depth / 4 {
                    for p in 0..4 {
                        accumulate::<S, ROWS, VECTORS>(simd, &mut sums, a.add(p), a_row, b);
                        b = b.add(b_row);
                    }
                    a = a.add(4);
                }
                for _ in 0..depth % 4 {
                    accumulate::<S, ROWS, VECTORS>(simd, &mut sums, a, a_row, b);
                    a = a.add(1);
                    b = b.add(b_row);
                }
            }
            // Whole loops per case: anything less unrolled would take the sums out of their registers.
            let place = |r: usize, v: usize| c.add(r * c_row + v * lanes);
            match start {
                Start::Zero => {}
                Start::Keep => {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = simd.add_f32s(load::<S>(place(r, v)), *sum);
                        }
                    }
                }
                Start::Scale(factors) => {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let factor = simd.splat_f32s(*factors.get_unchecked(r));
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = simd.mul_add_e_f32s(load::<S>(place(r, v)), factor, *sum);
                        }
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    place(r, v).cast::<S::f32s>().write_unaligned(*sum);
                }
            }
        }
    }
}

/// Adds one column of A times one row of B.
#[inline(always)]
unsafe fn accumulate<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    sums: &mut [[S::f32s; VECTORS]; ROWS],
    a: *const f32,
    a_row: usize,
    b: *const f32,
) {
    let mut row = [simd.splat_f32s(0.0); VECTORS];
    // SAFETY: the caller's: ROWS values of A and VECTORS of B can be reached.
    unsafe {
        for (v, vector) in row.iter_mut().enumerate() {
            *vector = load::<S>(b.add(v * S::F32_LANES));
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let factor = simd.splat_f32s(*a.add(r * a_row));
            for (sum, vector) in sums.iter_mut().zip(row) {
                *sum = simd.mul_add_e_f32s(factor, vector, *sum);
            }
        }
    }
}

/// One vector from anywhere.
#[inline(always)]
unsafe fn load<S: Simd>(place: *const f32) -> S::f32s {
    // SAFETY: the caller's: a whole vector lies there.
    unsafe { place.cast::<S::f32s>().read_unaligned() }
}
