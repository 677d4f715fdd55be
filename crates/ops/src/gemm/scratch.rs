//! Packing buffers that a thread keeps between calls.

use std::cell::Cell;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([u32; 16]);

/// Which of a thread's buffers: those of a caller and of the tasks it takes part in are different.
#[derive(Clone, Copy)]
pub(super) enum Slot {
    Whole,
    Task,
}

thread_local! {
    static BUFFERS: [Cell<Vec<Line>>; 2] = const { [Cell::new(Vec::new()), Cell::new(Vec::new())] };
}

/// As [`with_slot`], with the buffer of a whole product.
pub(super) fn with<R>(words: usize, work: impl FnOnce(*mut u32) -> R) -> R {
    with_slot(Slot::Whole, words, work)
}

/// Calls `work` with `words` 4-byte words of this thread's buffer, aligned to cache lines, contents unspecified.
///
/// The buffer is taken out meanwhile: a nested call (a thread that steals work while it waits) gets its own.
pub(super) fn with_slot<R>(slot: Slot, words: usize, work: impl FnOnce(*mut u32) -> R) -> R {
    let mut buffer = BUFFERS.with(|buffers| buffers[slot as usize].take());
    let lines = words.div_ceil(16);
    if buffer.len() < lines {
        buffer.resize(lines, Line([0; 16]));
    }
    let result = work(buffer.as_mut_ptr().cast());
    BUFFERS.with(|buffers| buffers[slot as usize].set(buffer));
    result
}
