//! Moving rows between tensors and scratch: widening, scaling.

use super::{
    block::Block,
    scratch::{LINE, padded, pitch},
};
use crate::{attention::Heads, simd::prefetch};
use keyfold_core::DType;
use keyfold_tensor::bf16;
use std::ops::Range;

#[derive(Clone, Copy)]
enum Place {
    F32(*mut f32),
    Bf16(*const bf16),
}

/// Where one head of every token row lies.
#[derive(Clone, Copy)]
pub(super) struct HeadRows {
    place: Place,
    stride: usize,
    width: usize,
}

// SAFETY: a place, not an access; the kernels split heads and rows among threads.
unsafe impl Send for HeadRows {}
// SAFETY: as above.
unsafe impl Sync for HeadRows {}

impl HeadRows {
    /// Head `head`, rows counted from row `first`.
    pub(super) fn new(heads: &Heads<'_>, head: usize, first: usize) -> Self {
        let tensor = heads.tensor;
        let offset = first * tensor.stride() + head * heads.stride;
        // SAFETY: the entry checks have seen that every head of every row lies within the tensor.
        let place = unsafe {
            match tensor.dtype() {
                DType::F32 => Place::F32(tensor.as_mut_ptr().add(offset)),
                DType::Bf16 => Place::Bf16(tensor.as_mut_bf16_ptr().add(offset)),
                other => other.unsupported("attention on the host"),
            }
        };
        Self { place, stride: tensor.stride(), width: heads.width }
    }

    /// Address of an f32 `row`.
    pub(super) fn address(&self, row: usize) -> *const f32 {
        let Place::F32(start) = self.place else {
            unreachable!("entry checks let only f32 through");
        };
        // SAFETY: the row lies within the tensor.
        unsafe { start.add(row * self.stride) }
    }

    /// These rows, if they are of f32 and whole lines long, as they would be in scratch.
    pub(super) fn plain(&self) -> Option<PlainRows> {
        match self.place {
            Place::F32(start) if self.width == padded(self.width) => {
                Some(PlainRows { start, stride: self.stride, width: self.width })
            }
            _ => None,
        }
    }

    /// Copies `row` to the start of `to`, times `factor`, and zeros up to a whole line.
    #[inline(always)]
    pub(super) fn read(&self, row: usize, factor: f32, to: &mut [f32]) {
        let (to, padding) = to[..padded(self.width)].split_at_mut(self.width);
        match self.place {
            Place::F32(start) => {
                // SAFETY: the row lies within the tensor, whose reader this op is.
                let from = unsafe { std::slice::from_raw_parts(start.add(row * self.stride), self.width) };
                to.iter_mut().zip(from).for_each(|(to, from)| *to = from * factor);
            }
            Place::Bf16(start) => {
                // SAFETY: as above.
                let from = unsafe { std::slice::from_raw_parts(start.add(row * self.stride), self.width) };
                for (to, from) in to.iter_mut().zip(from) {
                    *to = f32::from_bits(u32::from(from.to_bits()) << 16) * factor;
                }
            }
        }
        padding.fill(0.0);
    }

    /// Copies `rows` to the rows of `to`, each padded to whole lines, a pitch apart.
    #[inline(always)]
    pub(super) fn read_all(&self, rows: Range<usize>, to: &mut [f32]) {
        for (row, to) in rows.zip(to.chunks_exact_mut(pitch(self.width))) {
            self.read(row, 1.0, to);
        }
    }

    /// Sets `row` to zero.
    ///
    /// # Safety
    /// The caller is the only one at work on that row of that head.
    #[inline(always)]
    pub(super) unsafe fn clear(&self, row: usize) {
        // SAFETY: the caller's.
        unsafe { self.row_mut(row) }.fill(0.0);
    }

    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    unsafe fn row_mut(&self, row: usize) -> &mut [f32] {
        let Place::F32(start) = self.place else {
            unreachable!("entry checks let only f32 outputs through");
        };
        // SAFETY: the row lies within the tensor; the caller has it alone.
        unsafe { std::slice::from_raw_parts_mut(start.add(row * self.stride), self.width) }
    }

    /// Writes `factor` times `values` to `row`, or adds it.
    ///
    /// # Safety
    /// The caller is the only one at work on that row of that head.
    #[inline(always)]
    pub(super) unsafe fn write(&self, row: usize, factor: f32, values: &[f32], add: bool) {
        // SAFETY: the caller's.
        let to = unsafe { self.row_mut(row) };
        if add {
            to.iter_mut().zip(values).for_each(|(to, value)| *to += value * factor);
        } else {
            to.iter_mut().zip(values).for_each(|(to, value)| *to = value * factor);
        }
    }
}

/// Copies the columns of `block` to the rows of `to` (each padded to whole lines, a pitch apart), times `factor`;
/// padding columns become rows of zeros.
#[inline(always)]
pub(super) fn read_columns(heads: &Heads<'_>, first: usize, block: &Block, factor: f32, to: &mut [f32]) {
    let mut rows = to.chunks_exact_mut(pitch(heads.width));
    for head in block.heads.clone() {
        let from = HeadRows::new(heads, head, first);
        for (query, to) in block.queries.clone().zip(&mut rows) {
            from.read(query, factor, to);
        }
    }
    rows.take(block.padded() - block.len()).for_each(|row| row.fill(0.0));
}

/// Where one head of the tokens of a sequence lies.
#[derive(Clone, Copy)]
pub(super) struct PagedRows<'a> {
    rows: HeadRows,
    page_size: usize,
    pages: &'a [u32],
}

impl<'a> PagedRows<'a> {
    /// Token j is row `j % page_size` of page `pages[j / page_size]`.
    pub(super) fn new(rows: HeadRows, page_size: usize, pages: &'a [u32]) -> Self {
        Self { rows, page_size, pages }
    }

    /// Token j is row j.
    pub(super) fn adjacent(rows: HeadRows) -> Self {
        Self { rows, page_size: usize::MAX, pages: &[0] }
    }

    /// Columns of the head.
    pub(super) fn width(&self) -> usize {
        self.rows.width
    }

    /// Row of token 0 if the page of `token` were where the sequence began, and the token after that page.
    #[inline(always)]
    fn page(&self, token: usize) -> (usize, usize) {
        let page = token / self.page_size;
        let first = page * self.page_size;
        let row = self.pages[page] as usize * self.page_size;
        (row.wrapping_sub(first), first.saturating_add(self.page_size))
    }

    /// `tokens`, which are not none, in place, counted as tokens, if they are of f32, whole lines long and in one page.
    #[inline(always)]
    pub(super) fn plain(&self, tokens: &Range<usize>) -> Option<PlainRows> {
        let (offset, end) = self.page(tokens.start);
        if tokens.end > end {
            return None;
        }
        self.rows.plain().map(|rows| rows.shifted(offset))
    }

    /// Copies `tokens` to the rows of `to`, each padded to whole lines, a pitch apart.
    #[inline(always)]
    pub(super) fn read_all(&self, tokens: Range<usize>, to: &mut [f32]) {
        let mut to = to.chunks_exact_mut(pitch(self.width()));
        let mut start = tokens.start;
        while start < tokens.end {
            let (offset, page_end) = self.page(start);
            let end = page_end.min(tokens.end);
            for (token, to) in (start..end).zip(&mut to) {
                self.rows.read(token.wrapping_add(offset), 1.0, to);
            }
            start = end;
        }
    }
}

/// Rows of f32 of whole lines: a head in place, or its copy in scratch.
#[derive(Clone, Copy)]
pub(super) struct PlainRows {
    start: *const f32,
    stride: usize,
    /// Padded to whole lines.
    width: usize,
}

impl PlainRows {
    /// The rows of `scratch`, each padded to whole lines, `stride` apart.
    #[inline(always)]
    pub(super) fn of(scratch: &[f32], stride: usize, width: usize) -> Self {
        Self { start: scratch.as_ptr(), stride, width: padded(width) }
    }

    /// The same rows, the first of which is row `first`.
    #[inline(always)]
    pub(super) fn counted_from(self, first: usize) -> Self {
        Self { start: self.start.wrapping_sub(first * self.stride), ..self }
    }

    /// The same rows, `offset` (which may be below 0, wrapped) later than they are counted.
    #[inline(always)]
    fn shifted(self, offset: usize) -> Self {
        Self { start: self.start.wrapping_add(offset.wrapping_mul(self.stride)), ..self }
    }

    /// Address of `row`.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> *const f32 {
        self.start.wrapping_add(row * self.stride)
    }

    /// The rows `rows`, at least one, and from one to the next.
    #[inline(always)]
    pub(super) fn slice(&self, rows: &Range<usize>) -> (&[f32], usize) {
        let length = (rows.len() - 1) * self.stride + self.width;
        // SAFETY: the rows lie within the tensor or the scratch, whose reader this op is.
        (unsafe { std::slice::from_raw_parts(self.row(rows.start), length) }, self.stride)
    }

    /// Asks for `row` to be brought near.
    #[inline(always)]
    pub(super) fn prefetch(&self, row: usize) {
        for line in (0..self.width).step_by(LINE) {
            prefetch(self.row(row).wrapping_add(line));
        }
    }
}
