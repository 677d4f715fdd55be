//! NVIDIA GPUs: one context and one stream of work each.
//!
//! All work of a device goes into one stream, in the order in which it is asked for. That is what lets an arena hand out
//! a buffer again as soon as its tensor is dropped: whoever writes it next does so behind everyone who still reads it.
//! Uploads go through pinned memory, so that the host does not wait for the device; downloads wait.

mod deferred;
mod mailbox;
mod record;

pub(crate) use mailbox::Mailbox;
pub(crate) use record::{Recorded, record, start};

use crate::{Device, DeviceError, tensor::Rows};
use cudarc::driver::{result, sys};
use deferred::Deferred;
use std::{
    cell::Cell,
    ffi::c_void,
    ptr::NonNull,
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

/// The oldest compute capability with bf16 matrix units and asynchronous copies.
const OLDEST: (i32, i32) = (8, 0);
/// Uploads under way at a time.
const SLOTS: usize = 8;
/// Largest piece of an upload.
const PIECE: usize = 4 << 20;

/// A GPU in use. It stays open until the process ends.
pub struct Gpu {
    index: usize,
    handle: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    name: String,
    capability: (i32, i32),
    multiprocessors: usize,
    shared_memory: usize,
    staging: Mutex<Staging>,
    /// Work is recorded instead of done.
    recording: AtomicBool,
    deferred: Deferred,
}

// SAFETY: the driver's handles may be used from any thread on which the context is current; `bind` makes it so.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

static OPEN: Mutex<Vec<&'static Gpu>> = Mutex::new(Vec::new());

thread_local! {
    /// The device whose context is current on this thread.
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is changed by single assignments: a panic in between leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The GPU `index`, opened if it is not yet.
///
/// # Errors
/// When the driver is missing or fails, there is no such GPU, or it is too old.
pub fn gpu(index: usize) -> Result<&'static Gpu, DeviceError> {
    let mut open = lock(&OPEN);
    if let Some(gpu) = open.iter().find(|gpu| gpu.index == index) {
        return Ok(gpu);
    }
    let gpu: &'static Gpu = Box::leak(Box::new(Gpu::open(index)?));
    open.push(gpu);
    Ok(gpu)
}

/// The GPU `index`, which holds a tensor and is therefore open.
fn opened(index: usize) -> &'static Gpu {
    gpu(index).unwrap_or_else(|error| error.raise())
}

impl Gpu {
    fn open(index: usize) -> Result<Self, DeviceError> {
        let device = Device::Cuda(index);
        // SAFETY: looks for the library alone.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::NoDriver(device));
        }
        let failed = |action: &'static str| {
            move |error: result::DriverError| DeviceError::Driver {
                device,
                action: action.to_owned(),
                problem: describe_error(error),
            }
        };
        result::init().map_err(failed("initialise the driver"))?;
        let count = result::device::get_count().map_err(failed("count devices"))? as usize;
        if index >= count {
            return Err(DeviceError::NoDevice { device, count });
        }
        let handle = result::device::get(index as i32).map_err(failed("find the device"))?;
        let name = result::device::get_name(handle).map_err(failed("ask for the device's name"))?;
        let attribute = |attribute| {
            // SAFETY: the handle is that of a device.
            unsafe { result::device::get_attribute(handle, attribute) }
                .map_err(failed("ask for an attribute"))
        };
        use sys::CUdevice_attribute_enum as Attribute;
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < OLDEST {
            return Err(DeviceError::TooOld { device, name, capability });
        }
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let shared_memory =
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize;
        // SAFETY: the handle is that of a device; the context is never released.
        let context = unsafe { result::primary_ctx::retain(handle) }.map_err(failed("make a context"))?;
        // SAFETY: the context was just made.
        unsafe { result::ctx::set_current(context) }.map_err(failed("use the context"))?;
        CURRENT.set(Some(index));
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(failed("make a stream"))?;
        Ok(Self {
            index,
            handle,
            context,
            stream,
            name,
            capability,
            multiprocessors,
            shared_memory,
            staging: Mutex::default(),
            recording: AtomicBool::new(false),
            deferred: Deferred::default(),
        })
    }

    /// The device.
    pub fn device(&self) -> Device {
        Device::Cuda(self.index)
    }

    /// Its number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The driver's handle.
    pub fn handle(&self) -> sys::CUdevice {
        self.handle
    }

    /// The stream that all its work goes into, in which what was put off ([`Gpu::defer`]) is now.
    pub fn stream(&self) -> sys::CUstream {
        self.deferred.run(self);
        self.stream
    }

    /// Has `work`, which asks for the stream itself, done before the stream is asked for anything else: for ops that wait to see what
    /// follows them. Work that is already put off must be the same.
    pub fn defer(&self, work: fn(&Self)) {
        self.deferred.put_off(work);
    }

    /// Model name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Compute capability.
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// Number of multiprocessors.
    pub fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Bytes of shared memory that a block may ask for.
    pub fn shared_memory(&self) -> usize {
        self.shared_memory
    }

    /// Makes its context the calling thread's; before any call of the driver.
    pub fn bind(&self) {
        if CURRENT.get() != Some(self.index) {
            // SAFETY: the context lives as long as the process.
            self.check("use the context", unsafe { result::ctx::set_current(self.context) });
            CURRENT.set(Some(self.index));
        }
    }

    /// The value of a driver call, or its error [raised](DeviceError::raise).
    pub fn check<T>(&self, action: &str, outcome: Result<T, result::DriverError>) -> T {
        match outcome {
            Ok(value) => value,
            Err(error) => DeviceError::Driver {
                device: self.device(),
                action: action.to_owned(),
                problem: describe_error(error),
            }
            .raise(),
        }
    }

    /// Waits until the stream is empty.
    pub fn synchronize(&self) {
        self.needs_host("wait");
        self.bind();
        // SAFETY: the stream lives as long as the process.
        self.check("wait for the device", unsafe { result::stream::synchronize(self.stream()) });
    }

    fn upload(&self, to: u64, bytes: &[u8]) {
        self.needs_host("upload");
        self.bind();
        let stream = self.stream();
        let mut staging = lock(&self.staging);
        for (index, piece) in bytes.chunks(PIECE).enumerate() {
            let slot = staging.slot(self, piece.len());
            // SAFETY: the slot holds at least as many bytes, and nothing uses it any more. The target is memory of the
            // device of the given length, by the caller.
            unsafe {
                slot.memory.as_ptr().copy_from_nonoverlapping(piece.as_ptr(), piece.len());
                let source = slot.memory.as_ptr().cast::<c_void>();
                let to = to + (index * PIECE) as u64;
                let copied = sys::cuMemcpyHtoDAsync_v2(to, source, piece.len(), stream).result();
                self.check("copy to the device", copied);
                self.check("record an event", result::event::record(slot.event, stream));
            }
        }
    }
}

fn describe_error(error: result::DriverError) -> String {
    let text = |text: Result<&std::ffi::CStr, _>| text.map(|t| t.to_string_lossy().into_owned()).ok();
    match (text(error.error_name()), text(error.error_string())) {
        (Some(name), Some(what)) => format!("{name} ({what})"),
        _ => format!("error {:?}", error.0),
    }
}

/// Pinned memory of uploads under way.
#[derive(Default)]
struct Staging {
    slots: Vec<Slot>,
    next: usize,
}

struct Slot {
    memory: NonNull<u8>,
    size: usize,
    /// Comes when the copy out of this memory is done.
    event: sys::CUevent,
}

// SAFETY: pinned memory and an event, which any thread may use one at a time.
unsafe impl Send for Slot {}

impl Staging {
    /// Memory of at least `size` bytes that no copy reads any more.
    fn slot(&mut self, gpu: &Gpu, size: usize) -> &Slot {
        let index = self.next % SLOTS;
        self.next += 1;
        if let Some(slot) = self.slots.get(index) {
            // SAFETY: the event was made with the slot.
            gpu.check("wait for a copy", unsafe { result::event::synchronize(slot.event) });
        }
        if self.slots.get(index).is_none_or(|slot| slot.size < size) {
            let size = size.next_power_of_two().max(64 << 10);
            // SAFETY: the memory belongs to the slot; the one before is not read any more.
            unsafe {
                let memory = gpu.check("take pinned memory", result::malloc_host(size, 0));
                let Some(memory) = NonNull::new(memory.cast::<u8>()) else {
                    gpu.check(
                        "take pinned memory",
                        Err(result::DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)),
                    )
                };
                match self.slots.get_mut(index) {
                    Some(slot) => {
                        gpu.check("free pinned memory", result::free_host(slot.memory.as_ptr().cast()));
                        (slot.memory, slot.size) = (memory, size);
                    }
                    None => {
                        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
                        let event = gpu.check("make an event", result::event::create(flags));
                        self.slots.push(Slot { memory, size, event });
                    }
                }
            }
        }
        &self.slots[index]
    }
}

pub(crate) fn open(index: usize) -> Result<(), DeviceError> {
    gpu(index).map(|_| ())
}

pub(crate) fn describe(index: usize) -> Option<String> {
    gpu(index).ok().map(|gpu| gpu.name.clone())
}

/// Free and total bytes.
pub(crate) fn memory(index: usize) -> Option<(u64, u64)> {
    let gpu = gpu(index).ok()?;
    gpu.bind();
    result::mem_get_info().ok().map(|(free, total)| (free as u64, total as u64))
}

pub(crate) fn synchronize(index: usize) {
    opened(index).synchronize();
}

/// Memory of `size` bytes; none when there is not so much left.
pub(crate) fn allocate(index: usize, size: usize) -> Result<Option<NonNull<u8>>, DeviceError> {
    let gpu = gpu(index)?;
    gpu.bind();
    // SAFETY: a plain allocation.
    match unsafe { result::malloc_sync(size) } {
        Ok(address) => Ok(NonNull::new(address as *mut u8)),
        Err(result::DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
        Err(error) => Err(DeviceError::Driver {
            device: gpu.device(),
            action: format!("take {size} bytes"),
            problem: describe_error(error),
        }),
    }
}

/// Gives memory back. Waits for the work that may still use it; what is put off holds its memory.
pub(crate) fn free(index: usize, memory: NonNull<u8>) {
    if let Ok(gpu) = gpu(index) {
        // Buffers are dropped while a failed device's error unwinds too, so that errors are left alone here.
        // SAFETY: allocated by `allocate`, and nobody holds it any more.
        unsafe {
            let _ = result::ctx::set_current(gpu.context);
            CURRENT.set(Some(index));
            let _ = result::free_sync(memory.as_ptr() as u64);
        }
    }
}

/// Sets every byte of `rows` from `address` on.
pub(crate) fn fill(index: usize, address: u64, rows: Rows, byte: u8) {
    let gpu = opened(index);
    gpu.bind();
    let Rows { count, bytes, pitch } = rows;
    // SAFETY: the rows are a tensor's, in the memory of this device.
    let outcome = unsafe {
        match rows.is_one_run() {
            true => result::memset_d8_async(address, byte, count * bytes, gpu.stream()),
            false => sys::cuMemsetD2D8Async(address, pitch, byte, bytes, count, gpu.stream()).result(),
        }
    };
    gpu.check("fill memory", outcome);
}

/// Writes `values`, row behind row, to `rows` from `address` on.
pub(crate) fn upload(index: usize, address: u64, rows: Rows, values: &[u8]) {
    let gpu = opened(index);
    if rows.is_one_run() {
        return gpu.upload(address, values);
    }
    for (row, values) in values.chunks_exact(rows.bytes).enumerate() {
        gpu.upload(address + (row * rows.pitch) as u64, values);
    }
}

/// Reads `rows` from `address` on into `values`, row behind row.
pub(crate) fn download(index: usize, address: u64, rows: Rows, values: &mut [u8]) {
    let gpu = opened(index);
    gpu.needs_host("download");
    gpu.bind();
    let copy = sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        srcHost: std::ptr::null(),
        srcDevice: address,
        srcArray: std::ptr::null_mut(),
        srcPitch: if rows.is_one_run() { rows.bytes } else { rows.pitch },
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        dstHost: values.as_mut_ptr().cast(),
        dstDevice: 0,
        dstArray: std::ptr::null_mut(),
        dstPitch: rows.bytes,
        WidthInBytes: rows.bytes,
        Height: rows.count,
    };
    // SAFETY: the rows are a tensor's, in the memory of this device; `values` is as long and outlives the wait.
    unsafe {
        let outcome = match rows.is_one_run() {
            true => {
                let (to, bytes) = (values.as_mut_ptr().cast(), values.len());
                sys::cuMemcpyDtoHAsync_v2(to, address, bytes, gpu.stream()).result()
            }
            false => sys::cuMemcpy2DAsync_v2(&raw const copy, gpu.stream()).result(),
        };
        gpu.check("copy from the device", outcome);
    }
    gpu.synchronize();
}
