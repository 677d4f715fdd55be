//! Pinned memory that kernels write through the bus, and an event for each part of it.

use super::{opened, result, sys};
use std::ptr::NonNull;

#[derive(Debug)]
pub(crate) struct Mailbox {
    index: usize,
    memory: NonNull<u32>,
    address: u64,
    events: Vec<sys::CUevent>,
}

// SAFETY: pinned memory and events, which any thread may use, one at a time.
unsafe impl Send for Mailbox {}

impl Mailbox {
    /// `words` words in all, and `marks` events.
    pub(crate) fn new(index: usize, marks: usize, words: usize) -> Self {
        let gpu = opened(index);
        gpu.bind();
        let bytes = 4 * words.max(1);
        // SAFETY: plain allocations; the memory is written before anyone reads it.
        let (memory, address) = unsafe {
            let memory =
                gpu.check("take pinned memory", result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP));
            memory.cast::<u8>().write_bytes(0, bytes);
            let mut address = 0;
            let found = sys::cuMemHostGetDevicePointer_v2(&raw mut address, memory, 0).result();
            gpu.check("find pinned memory", found);
            (memory.cast::<u32>(), address)
        };
        let Some(memory) = NonNull::new(memory) else {
            gpu.check("take pinned memory", Err(result::DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)))
        };
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let events = (0..marks).map(|_| gpu.check("make an event", result::event::create(flags))).collect();
        Self { index, memory, address, events }
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn mark(&self, mark: usize) {
        let gpu = opened(self.index);
        gpu.needs_host("mark");
        gpu.bind();
        // SAFETY: the event and the stream exist.
        gpu.check("record an event", unsafe { result::event::record(self.events[mark], gpu.stream()) });
    }

    /// `count` words from `first` on, when `mark` has come.
    pub(crate) fn read(&self, mark: usize, first: usize, count: usize) -> Vec<u32> {
        let gpu = opened(self.index);
        gpu.bind();
        // SAFETY: the event was made with the mailbox.
        gpu.check("wait for an event", unsafe { result::event::synchronize(self.events[mark]) });
        // SAFETY: within the memory; the device may write it at any time, so that nothing is assumed of it.
        (first..first + count).map(|at| unsafe { self.memory.as_ptr().add(at).read_volatile() }).collect()
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        // As for memory: errors are left alone where a failed device's error unwinds.
        if let Ok(gpu) = super::gpu(self.index) {
            gpu.bind();
            // SAFETY: work that may still write here is waited for; nobody else knows the memory and the events.
            unsafe {
                let _ = result::stream::synchronize(gpu.stream());
                for event in self.events.drain(..) {
                    let _ = result::event::destroy(event);
                }
                let _ = result::free_host(self.memory.as_ptr().cast());
            }
        }
    }
}
