//! Contracts that every other crate shares and that hold no tensors: element types, the geometry of a KV cache,
//! the capacity of an attention design, and what it costs.
//!
//! Nothing here depends on a device or a model, so a scheduler or a planner can be built and tested on this crate alone.

mod cache;
mod capacity;
mod cost;
mod dtype;
pub mod units;

pub use cache::{CacheLayout, LayoutError, Plane, SCALE_BLOCK, row_width};
pub use capacity::Capacity;
pub use cost::Cost;
pub use dtype::{DType, ParseDTypeError};

#[cfg(test)]
mod tests;
