//! The `keyfold` command as people and scripts meet it: output, exit codes, error texts, and what a kill leaves.

// Clippy takes only functions with #[test] for tests; here all is.
#![allow(clippy::unwrap_used)]

mod bench;
mod chat;
mod compare;
mod concepts;
mod design;
mod export;
mod help;
mod interruption;
mod models;
mod perplexity;
mod real;
mod serve;
mod support;
