//! Options on how numbers are stored, shared by the commands that decode with a model folder.

use keyfold_core::DType;

#[derive(Debug, clap::Args)]
pub(super) struct StorageArgs {
    /// Storage of the cache.
    #[arg(long, default_value_t = DType::F32, value_name = "DTYPE")]
    pub(super) kv_dtype: DType,
    /// Storage of the weights in memory [default: as a model's file has them, used in place; else f32].
    #[arg(long, value_name = "DTYPE")]
    pub(super) dtype: Option<DType>,
}
