//! Memory and tensors.
//!
//! Every activation and weight of a language model is a matrix here: token rows (or output features) by columns.
//! A [`Tensor`] is a cheap handle to rows of a shared buffer; [`Arena`] hands the buffers out and takes them back,
//! so that a training step allocates nothing once it has run once. Memory is the host's or a GPU's ([`Device`]).

mod arena;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "no_cuda.rs"]
mod cuda;
mod device;
pub mod e4m3;
mod graph;
mod mailbox;
mod tensor;

pub use arena::{Arena, ArenaStats};
pub use device::{Device, DeviceError, ParseDeviceError, catch};
pub use graph::Graph;
pub use half::bf16;
pub use mailbox::Mailbox;
pub use tensor::Tensor;

#[cfg(test)]
mod tests;
