//! The `keyfold` command as people and scripts meet it: output, exit codes, error texts, and what a kill leaves.

mod bench;
mod compare;
mod help;
mod interruption;
mod models;
mod support;
