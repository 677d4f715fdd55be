//! CUDA graphs: the stream's work recorded instead of done.

use super::{Gpu, opened};
use crate::{Device, DeviceError};
use cudarc::driver::sys;
use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr::null_mut,
    sync::atomic::Ordering,
};

/// A graph that can be started.
#[derive(Debug)]
pub(crate) struct Recorded {
    index: usize,
    handle: sys::CUgraphExec,
}

// SAFETY: a handle that any thread may use, one at a time; `Graph` is started through one stream.
unsafe impl Send for Recorded {}

impl Gpu {
    /// Raises an error while work is being recorded: `action` needs the host.
    pub(super) fn needs_host(&self, action: &str) {
        if self.recording.load(Ordering::Relaxed) {
            let op = format!("to {action} within recorded work");
            DeviceError::Unsupported { device: self.device(), op }.raise()
        }
    }
}

pub(crate) fn record(index: usize, work: impl FnOnce()) -> Recorded {
    let gpu = opened(index);
    gpu.synchronize();
    let mut graph = null_mut();
    let mut handle = null_mut();
    // SAFETY: the stream is idle and of this context. Other threads may use their devices meanwhile: relaxed mode.
    unsafe {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        gpu.check("begin to record", sys::cuStreamBeginCapture_v2(gpu.stream(), mode).result());
    }
    gpu.recording.store(true, Ordering::Relaxed);
    let done = catch_unwind(AssertUnwindSafe(|| {
        work();
        // With what is put off.
        gpu.stream();
    }));
    gpu.recording.store(false, Ordering::Relaxed);
    // SAFETY: the capture began above; it ends whatever became of the work.
    let ended = unsafe { sys::cuStreamEndCapture(gpu.stream(), &raw mut graph) };
    if let Err(cause) = done {
        resume_unwind(cause)
    }
    gpu.check("end to record", ended.result());
    // SAFETY: the graph was just made, and is not needed once there is one that can be started.
    unsafe {
        let made = sys::cuGraphInstantiateWithFlags(&raw mut handle, graph, 0).result();
        let freed = sys::cuGraphDestroy(graph).result();
        gpu.check("prepare recorded work", made);
        gpu.check("free recorded work", freed);
    }
    Recorded { index, handle }
}

pub(crate) fn start(index: usize, recorded: &Recorded) {
    let gpu = opened(index);
    gpu.bind();
    // SAFETY: the graph lives, and what it uses is kept by whoever recorded it.
    let started = unsafe { sys::cuGraphLaunch(recorded.handle, gpu.stream()) };
    gpu.check("start recorded work", started.result());
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // As for memory: errors are left alone where a failed device's error unwinds.
        if let Ok(gpu) = super::gpu(self.index) {
            let _ = (gpu.device() == Device::Cuda(self.index)).then(|| gpu.bind());
            // SAFETY: nobody starts it any more; the driver waits for what is under way.
            unsafe {
                let _ = sys::cuGraphExecDestroy(self.handle);
            }
        }
    }
}
