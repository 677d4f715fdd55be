//! Fused operations of a decoder language model: forward and hand-written backward.
//!
//! One folder per op. `mod.rs` states shapes and dispatches by device, `reference.rs` is the slow f64 twin that every
//! fast path is tested against, `cpu.rs` is the fast path; `cuda.rs` with `kernel.cu` is that of a GPU. Activations are [`keyfold_tensor::Tensor`]s of token rows.

pub mod adamw;
pub mod add;
pub mod append;
pub mod attention;
pub mod bandwidth;
pub mod cast;
pub mod cross_entropy;
#[cfg(feature = "cuda")]
mod cuda;
mod dispatch;
pub mod embedding;
pub mod fp8;
pub mod gemm;
pub mod glu;
pub mod indices;
pub mod linear;
pub mod mla_keys;
pub mod moe;
pub mod muon;
pub mod parallel;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod scatter;
pub mod selftest;
mod simd;
pub mod tpa;
pub mod value_map;

#[cfg(test)]
pub(crate) mod testing;
