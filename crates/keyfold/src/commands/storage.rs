//! Options on how numbers are stored, shared by the commands that decode with a model folder.

use keyfold_core::DType;
use keyfold_tensor::Device;

#[derive(Debug, clap::Args)]
pub(super) struct StorageArgs {
    /// Storage of the cache: f32 or bf16, on a GPU bf16 or fp8 [default: f32, on a GPU bf16].
    #[arg(long, value_name = "DTYPE", value_parser = kv_dtype)]
    kv_dtype: Option<DType>,
    /// Storage of the weights in memory [default: as a model's file has them, used in place; else f32; on a GPU bf16].
    #[arg(long, value_name = "DTYPE")]
    pub(super) dtype: Option<DType>,
}

/// A cache's element type: those that weights have, and one that only caches have.
fn kv_dtype(name: &str) -> Result<DType, String> {
    match name {
        "fp8" => Ok(DType::Fp8),
        other => other.parse().map_err(|error| format!("{error}, or fp8 on a GPU")),
    }
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
