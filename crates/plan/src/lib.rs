//! Explains attention and designs it, without a tensor: parameters, cache, capacity, FLOPs and rooflines of a model, and
//! models of equal size whose cache fits a budget.
//!
//! Every figure comes from what the model itself declares (`ModelConfig::declare`, `Design::{cache_layout, capacity,
//! cost}`), so that a figure told and a model run cannot differ.
//!
//! ```
//! use keyfold_plan::{KvDtype, Target, Workload, inspect::inspect};
//!
//! let target = Target::open("paper-7b-mfa-kr")?;
//! let told = inspect(&target, &Workload::new(8192, 1, KvDtype::Bf16)?)?;
//! assert_eq!(told.kv_bytes_per_token, 12_288);
//! # Ok::<(), keyfold_plan::PlanError>(())
//! ```

mod error;
mod grid;
pub mod hardware;
pub mod inspect;
mod presets;
pub mod roofline;
pub mod search;
pub mod symbols;
pub mod table;
mod target;
mod workload;

pub use error::PlanError;
pub use grid::Grid;
pub use presets::PRESETS;
pub use target::{Source, Target};
pub use workload::{KvDtype, Workload};
