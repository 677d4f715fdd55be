//! Pooled, 64-byte aligned host memory.
//!
//! A training step asks for the same sizes in the same order every time, so freed buffers are kept by size and handed
//! out again: after the first step nothing is allocated. Recycled memory is *not* cleared; a poisoning arena fills it
//! with NaN so that tests catch an op that reads what it never wrote.

use keyfold_core::DType;
use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    any::Any,
    collections::HashMap,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::Tensor;

const ALIGN: usize = 64;
/// Sizes are rounded up to this, so that nearly equal requests share buffers.
const GRANULE: usize = 1024;

/// Counts of an [`Arena`], in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaStats {
    /// Held by live tensors now.
    pub live: usize,
    /// The most that was ever held by live tensors.
    pub peak: usize,
    /// Taken from the system: live and pooled.
    pub reserved: usize,
}

#[derive(Default)]
struct Pool {
    free: HashMap<usize, Vec<Block>>,
    stats: ArenaStats,
}

struct Inner {
    pool: Mutex<Pool>,
    poison: bool,
}

/// A shared pool of buffers; clones hand out from the same pool.
#[derive(Clone)]
pub struct Arena(Arc<Inner>);

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

impl Arena {
    /// An empty pool.
    pub fn new() -> Self {
        Self(Arc::new(Inner { pool: Mutex::default(), poison: false }))
    }

    /// A pool that fills every buffer it hands out with NaN.
    pub fn poisoned() -> Self {
        Self(Arc::new(Inner { pool: Mutex::default(), poison: true }))
    }

    /// A tensor of `rows` x `cols` with unspecified contents.
    pub fn tensor(&self, rows: usize, cols: usize, dtype: DType) -> Tensor {
        Tensor::from_buffer(self.buffer(rows * cols * dtype.bytes()), rows, cols, dtype)
    }

    /// A tensor of `rows` x `cols` zeros.
    pub fn zeros(&self, rows: usize, cols: usize, dtype: DType) -> Tensor {
        let mut tensor = self.tensor(rows, cols, dtype);
        tensor.fill_zero();
        tensor
    }

    /// A tensor of `rows` x `cols` f32 with the values of `values`, row by row.
    ///
    /// # Panics
    /// When `values` does not hold `rows * cols` values.
    pub fn tensor_of(&self, rows: usize, cols: usize, values: &[f32]) -> Tensor {
        assert_eq!(values.len(), rows * cols, "tensor_of: {rows} x {cols} needs {} values", rows * cols);
        let mut tensor = self.tensor(rows, cols, DType::F32);
        tensor.write(values);
        tensor
    }

    /// What is in use.
    pub fn stats(&self) -> ArenaStats {
        self.0.lock().stats
    }

    /// Gives pooled buffers back to the system.
    pub fn trim(&self) {
        let mut pool = self.0.lock();
        let freed: usize = pool.free.drain().flat_map(|(_, blocks)| blocks).map(|block| block.size()).sum();
        pool.stats.reserved -= freed;
    }

    fn buffer(&self, bytes: usize) -> Arc<Buffer> {
        let size = bytes.max(1).div_ceil(GRANULE) * GRANULE;
        let recycled = {
            let mut pool = self.0.lock();
            let block = pool.free.get_mut(&size).and_then(Vec::pop);
            if block.is_none() {
                pool.stats.reserved += size;
            }
            pool.stats.live += size;
            pool.stats.peak = pool.stats.peak.max(pool.stats.live);
            block
        };
        let block = recycled.unwrap_or_else(|| Block::new(size));
        if self.0.poison {
            // SAFETY: the block is `size` bytes long and nobody else holds it.
            unsafe { block.ptr.as_ptr().write_bytes(0xff, size) };
        }
        Arc::new(Buffer::Pooled(Pooled { block: Some(block), pool: self.0.clone() }))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Pool> {
        // The pool's counts are updated without anything that can panic in between: a poisoned lock is still sound.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Block {
    ptr: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block owns its memory; access is governed by the tensors that share it.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    fn new(size: usize) -> Self {
        let Ok(layout) = Layout::from_size_align(size, ALIGN) else {
            handle_alloc_error(Layout::new::<u8>());
        };
        // SAFETY: `size` is at least GRANULE, so the layout is not empty.
        let ptr = unsafe { alloc_zeroed(layout) };
        match NonNull::new(ptr) {
            Some(ptr) => Self { ptr, layout },
            None => handle_alloc_error(layout),
        }
    }

    fn size(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) };
    }
}

/// Memory that tensors share.
pub(crate) enum Buffer {
    /// On loan from an arena; returns to it when the last tensor that uses it goes.
    Pooled(Pooled),
    /// Kept alive by its owner.
    Foreign(Foreign),
}

pub(crate) struct Pooled {
    block: Option<Block>,
    pool: Arc<Inner>,
}

pub(crate) struct Foreign {
    ptr: NonNull<u8>,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the owner keeps the memory in place and may be shared; access is governed by the tensors that share it.
unsafe impl Send for Foreign {}
// SAFETY: as above.
unsafe impl Sync for Foreign {}

impl Buffer {
    pub(crate) fn foreign(ptr: NonNull<u8>, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self::Foreign(Foreign { ptr, _owner: owner })
    }

    pub(crate) fn ptr(&self) -> *mut u8 {
        match self {
            Self::Pooled(Pooled { block: Some(block), .. }) => block.ptr.as_ptr(),
            Self::Pooled(_) => NonNull::dangling().as_ptr(),
            Self::Foreign(foreign) => foreign.ptr.as_ptr(),
        }
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            let mut pool = self.pool.lock();
            pool.stats.live -= block.size();
            pool.free.entry(block.size()).or_default().push(block);
        }
    }
}
