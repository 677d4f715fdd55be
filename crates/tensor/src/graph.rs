//! Work of a device that is recorded once and started as a whole, many times.

use crate::{Device, cuda};

/// Recorded work: a CUDA graph.
///
/// Starting it again repeats the same kernels on the same memory. Whoever records keeps that memory: it belongs to an arena
/// that is used for nothing else and lives as long as the graph.
#[derive(Debug)]
pub struct Graph {
    device: Device,
    inner: cuda::Recorded,
}

impl Graph {
    /// Records what `work` asks of `device` instead of doing it; none for the host, where nothing is recorded and `work`
    /// does not run.
    ///
    /// `work` must have run once before, so that everything it needs is there, and must ask nothing of the host: an upload,
    /// a download or a wait raises an error.
    pub fn record(device: Device, work: impl FnOnce()) -> Option<Self> {
        let Device::Cuda(index) = device else { return None };
        Some(Self { device, inner: cuda::record(index, work) })
    }

    /// Where it runs.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Gives the recorded work to the device.
    pub fn start(&self) {
        if let Device::Cuda(index) = self.device {
            cuda::start(index, &self.inner);
        }
    }
}
