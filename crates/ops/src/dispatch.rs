//! Choosing an op's path by the device of its tensors.

/// `by_device!(tensor, cpu expression, cuda expression)`: the first for tensors of the host, the second for those of a GPU.
macro_rules! by_device {
    ($tensor:expr, $cpu:expr, $cuda:expr $(,)?) => {
        match $tensor.device() {
            keyfold_tensor::Device::Cpu => $cpu,
            #[cfg(feature = "cuda")]
            keyfold_tensor::Device::Cuda(_) => $cuda,
            // A build without CUDA opens no such device, so that no tensor lies there.
            #[cfg(not(feature = "cuda"))]
            device @ keyfold_tensor::Device::Cuda(_) => keyfold_tensor::DeviceError::NotBuilt(device).raise(),
        }
    };
}
pub(crate) use by_device;
