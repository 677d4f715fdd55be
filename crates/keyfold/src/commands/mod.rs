//! The subcommands.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod compare;
pub(crate) mod data;
pub(crate) mod download;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod perplexity;
pub(crate) mod plan;
mod sampling;
pub(crate) mod selftest;
pub(crate) mod serve;
mod serving;
mod storage;
pub(crate) mod table;
pub(crate) mod train;

use anyhow::Context;
use std::io::Write;

/// Writes a line to standard output; unlike `println!`, it fails where that is full or closed instead of panicking.
pub(crate) fn print_line(line: impl std::fmt::Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("standard output")
}
