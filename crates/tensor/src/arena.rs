//! Pooled, aligned memory of the host or of a device.
//!
//! A training step asks for the same sizes in the same order every time, so freed buffers are kept by size and handed
//! out again: after the first step nothing is allocated. On a device that is what keeps steps from waiting: taking and
//! freeing memory there stops all work. Recycled memory is *not* cleared; a poisoning arena fills it
//! with NaN so that tests catch an op that reads what it never wrote.

use crate::{Device, DeviceError, Tensor, cuda, tensor::Rows};
use keyfold_core::DType;
use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    any::Any,
    collections::BTreeMap,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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
    free: BTreeMap<usize, Vec<Block>>,
    stats: ArenaStats,
}

impl Pool {
    /// A free block of at least `size` bytes. A device's memory is dear: there a block may be up to an eighth too large.
    fn take(&mut self, size: usize, device: Device) -> Option<Block> {
        let limit = if device == Device::Cpu { size } else { size + size / 8 };
        let (&found, blocks) = self.free.range_mut(size..=limit).next()?;
        let block = blocks.pop();
        if blocks.is_empty() {
            self.free.remove(&found);
        }
        block
    }
}

struct Inner {
    pool: Mutex<Pool>,
    device: Device,
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
        Self::of(Device::Cpu, false)
    }

    /// A pool that fills every buffer it hands out with NaN.
    pub fn poisoned() -> Self {
        Self::of(Device::Cpu, true)
    }

    /// An empty pool of a device's memory.
    ///
    /// # Errors
    /// When the device cannot be used.
    pub fn on(device: Device) -> Result<Self, DeviceError> {
        device.open()?;
        Ok(Self::of(device, false))
    }

    /// As [`Arena::on`], with NaN in every buffer it hands out.
    ///
    /// # Errors
    /// When the device cannot be used.
    pub fn poisoned_on(device: Device) -> Result<Self, DeviceError> {
        device.open()?;
        Ok(Self::of(device, true))
    }

    /// An empty pool of the memory that `tensor` lies in.
    pub fn beside(tensor: &Tensor) -> Self {
        Self::of(tensor.device(), false)
    }

    /// An empty pool of the same memory as this one.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::of(self.0.device, self.0.poison)
    }

    fn of(device: Device, poison: bool) -> Self {
        Self(Arc::new(Inner { pool: Mutex::default(), device, poison }))
    }

    /// Whose memory it is.
    pub fn device(&self) -> Device {
        self.0.device
    }

    /// A tensor of `rows` x `cols` with unspecified contents. A device without room for it [raises](DeviceError::raise).
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
        let blocks = std::mem::take(&mut pool.free);
        let freed: usize = blocks.into_values().flatten().map(|block| block.size).sum();
        pool.stats.reserved -= freed;
    }

    fn buffer(&self, bytes: usize) -> Arc<Buffer> {
        let size = bytes.max(1).div_ceil(GRANULE) * GRANULE;
        let recycled = self.0.lock().take(size, self.0.device);
        let block = recycled.unwrap_or_else(|| self.fresh(size));
        {
            let mut pool = self.0.lock();
            pool.stats.live += block.size;
            pool.stats.peak = pool.stats.peak.max(pool.stats.live);
        }
        if self.0.poison {
            block.fill(0xff);
        }
        Arc::new(Buffer::Pooled(Pooled { block: Some(block), pool: self.0.clone() }))
    }

    /// Memory from the system; if there is too little, after what the pool keeps has been given back.
    fn fresh(&self, size: usize) -> Block {
        let device = self.0.device;
        let block = Block::new(size, device).or_else(|| {
            self.trim();
            Block::new(size, device)
        });
        let Some(block) = block else {
            let Device::Cuda(index) = device else { handle_alloc_error(layout(size)) };
            let (free, total) = cuda::memory(index).unwrap_or_default();
            let live = self.stats().live as u64;
            DeviceError::OutOfMemory { device, needed: size as u64, free, total, live }.raise()
        };
        self.0.lock().stats.reserved += size;
        block
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Pool> {
        // The pool's counts are updated without anything that can panic in between: a poisoned lock is still sound.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Block {
    /// An address of the device's memory.
    ptr: NonNull<u8>,
    size: usize,
    device: Device,
}

// SAFETY: a block owns its memory; access is governed by the tensors that share it.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

/// The layout of a host block: `size` is a multiple of GRANULE, and not 0.
fn layout(size: usize) -> Layout {
    match Layout::from_size_align(size, ALIGN) {
        Ok(layout) => layout,
        Err(_) => handle_alloc_error(Layout::new::<u8>()),
    }
}

impl Block {
    /// `size` bytes, if there are so many.
    fn new(size: usize, device: Device) -> Option<Self> {
        let ptr = match device {
            // SAFETY: `size` is at least GRANULE, so the layout is not empty.
            Device::Cpu => NonNull::new(unsafe { alloc_zeroed(layout(size)) }),
            Device::Cuda(index) => cuda::allocate(index, size).unwrap_or_else(|error| error.raise()),
        };
        ptr.map(|ptr| Self { ptr, size, device })
    }

    fn fill(&self, byte: u8) {
        match self.device {
            // SAFETY: the block is `size` bytes long and nobody else holds it.
            Device::Cpu => unsafe { self.ptr.as_ptr().write_bytes(byte, self.size) },
            Device::Cuda(index) => {
                cuda::fill(index, self.ptr.as_ptr() as u64, Rows::run(self.size), byte);
            }
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        match self.device {
            // SAFETY: allocated in `new` with this layout.
            Device::Cpu => unsafe { dealloc(self.ptr.as_ptr(), layout(self.size)) },
            Device::Cuda(index) => cuda::free(index, self.ptr),
        }
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

    /// Whose memory it is.
    pub(crate) fn device(&self) -> Device {
        match self {
            Self::Pooled(pooled) => pooled.pool.device,
            Self::Foreign(_) => Device::Cpu,
        }
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
            pool.stats.live -= block.size;
            pool.free.entry(block.size).or_default().push(block);
        }
    }
}
