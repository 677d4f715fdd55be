//! Row copies; the backward splits columns, not tokens, so that no two threads meet in one row of the table.

use crate::{
    cast::widen,
    simd::{BLOCK_ELEMENTS, Kernel, Rows, block_rows, for_lanes, launch},
};
use keyfold_core::DType;
use keyfold_tensor::{Tensor, bf16};
use pulp::Simd;
use std::ops::Range;

pub(super) fn forward(ids: &[u32], table: &Tensor, out: &mut Tensor) {
    let (cols, out) = (table.cols(), Rows::of(out));
    let block = block_rows(cols);
    match table.dtype() {
        DType::F32 => launch(ids.len(), block, &Copy { ids, table: Rows::of(table), out, cols }),
        DType::Bf16 => launch(ids.len(), block, &Widen { ids, table: Rows::of_bf16(table), out, cols }),
        other => other.unsupported("embedding"),
    }
}

pub(super) fn backward(ids: &[u32], d_out: &Tensor, d_table: &mut Tensor) {
    /// A cache line: narrower pieces would be shared by two threads.
    const LINE: usize = 16;
    let cols = d_table.cols();
    let parts = (ids.len() * cols / BLOCK_ELEMENTS).clamp(1, rayon::current_num_threads());
    let width = cols.div_ceil(parts).next_multiple_of(LINE);
    launch(cols, width, &Scatter { ids, d_out: Rows::of(d_out), d_table: Rows::of(d_table) });
}

struct Copy<'a> {
    ids: &'a [u32],
    table: Rows,
    out: Rows,
    cols: usize,
}

impl Kernel for Copy<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, _: S, rows: Range<usize>) {
        for row in rows {
            // SAFETY: the mod's asserts: the id is a row of the table, the token one of `out`.
            unsafe { self.table.row(self.ids[row] as usize).copy_to(self.out.row(row), self.cols) };
        }
    }
}

struct Widen<'a> {
    ids: &'a [u32],
    table: Rows<bf16>,
    out: Rows,
    cols: usize,
}

impl Kernel for Widen<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, _: S, rows: Range<usize>) {
        for row in rows {
            // SAFETY: as for `Copy`; tensors of different types do not overlap.
            unsafe { widen(self.table.row(self.ids[row] as usize), self.out.row(row), self.cols) };
        }
    }
}

struct Scatter<'a> {
    ids: &'a [u32],
    d_out: Rows,
    d_table: Rows,
}

impl Kernel for Scatter<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, cols: Range<usize>) {
        for (token, id) in self.ids.iter().enumerate() {
            // SAFETY: the mod's asserts: both rows exist and have these columns, which are this thread's alone.
            let (from, to) = unsafe {
                (self.d_out.row(token).add(cols.start), self.d_table.row(*id as usize).add(cols.start))
            };
            for_lanes(
                simd,
                cols.len(),
                #[inline(always)]
                // SAFETY: as above.
                |lanes| unsafe { lanes.put(simd, to, lanes.load(simd, from), true) },
            );
        }
    }
}
