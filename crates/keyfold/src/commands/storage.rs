//! Options on how numbers are stored, shared by the commands that decode with a model folder.

use keyfold_core::DType;
use keyfold_tensor::Device;

#[derive(Debug, clap::Args)]
pub(super) struct StorageArgs {
    /// Storage of the cache [default: f32, on a GPU bf16].
    #[arg(long, value_name = "DTYPE")]
    kv_dtype: Option<DType>,
    /// Storage of the weights in memory [default: as a model's file has them, used in place; else f32; on a GPU bf16].
    #[arg(long, value_name = "DTYPE")]
    pub(super) dtype: Option<DType>,
}

impl StorageArgs {
    /// Storage of a cache on `device`.
    pub(super) fn kv_dtype(&self, device: Device) -> DType {
        self.kv_dtype.unwrap_or(match device {
            Device::Cpu => DType::F32,
            Device::Cuda(_) => DType::Bf16,
        })
    }
}
