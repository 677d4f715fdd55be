//! Per-thread, cache-line aligned working memory that is kept between calls.

use std::cell::Cell;

/// Floats of a cache line: scratch slices start on one, and matrices in scratch are whole lines wide, which suits every
/// vector size and leaves the kernels without tails.
pub(super) const LINE: usize = 16;

/// `width` rounded up to whole lines.
pub(super) const fn padded(width: usize) -> usize {
    width.next_multiple_of(LINE)
}

/// From one row of `width` to the next: an odd number of lines where rows are long, so that a block of rows spreads
/// over all sets of the first-level cache.
pub(super) const fn pitch(width: usize) -> usize {
    let lines = padded(width) / LINE;
    if lines > 4 { (lines | 1) * LINE } else { lines * LINE }
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

thread_local! {
    static SCRATCH: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Calls `work` with slices of at least the given lengths, of unspecified contents.
#[inline(always)]
pub(super) fn with_scratch<const N: usize, R>(
    lengths: [usize; N],
    work: impl FnOnce([&mut [f32]; N]) -> R,
) -> R {
    let lines = lengths.iter().map(|length| length.div_ceil(LINE)).sum();
    // Taken, not borrowed: should this thread start another attention inside `work`, that one gets memory of its own.
    let mut memory = SCRATCH.take();
    if memory.len() < lines {
        memory.resize(lines, Line([0.0; LINE]));
    }
    let mut rest: &mut [f32] = {
        let length = memory.len() * LINE;
        // SAFETY: a line is its floats, without padding, and f32 asks for less alignment.
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), length) }
    };
    let result = work(lengths.map(|length| {
        let (slice, after) = std::mem::take(&mut rest).split_at_mut(padded(length));
        rest = after;
        slice
    }));
    SCRATCH.set(memory);
    result
}
