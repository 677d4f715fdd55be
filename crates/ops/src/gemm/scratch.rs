//! Packing buffers that a thread keeps between calls.

use std::cell::Cell;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([u32; 16]);

thread_local! {
    static BUFFER: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Calls `work` with `words` 4-byte words of this thread's buffer, aligned to cache lines, contents unspecified.
///
/// The buffer is taken out meanwhile: a nested call (a thread that steals work while it waits) gets its own.
pub(super) fn with<R>(words: usize, work: impl FnOnce(*mut u32) -> R) -> R {
    let mut buffer = BUFFER.take();
    let lines = words.div_ceil(16);
    if buffer.len() < lines {
        buffer.resize(lines, Line([0; 16]));
    }
    let result = work(buffer.as_mut_ptr().cast());
    BUFFER.set(buffer);
    result
}
