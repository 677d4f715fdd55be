//! The subcommands.

pub(crate) mod bench;
pub(crate) mod compare;
pub(crate) mod data;
pub(crate) mod generate;
pub(crate) mod logits;
pub(crate) mod train;
