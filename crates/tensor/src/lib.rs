//! Memory and tensors.
//!
//! Every activation and weight of a language model is a matrix here: token rows (or output features) by columns.
//! A [`Tensor`] is a cheap handle to rows of a shared buffer; [`Arena`] hands the buffers out and takes them back,
//! so that a training step allocates nothing once it has run once.

mod arena;
mod device;
mod tensor;

pub use arena::{Arena, ArenaStats};
pub use device::{Device, ParseDeviceError};
pub use half::bf16;
pub use tensor::Tensor;

#[cfg(test)]
mod tests;
