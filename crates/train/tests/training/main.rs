//! Whole training runs of tiny models: what they write, how they stop, go on and fail.

// Clippy takes only functions with #[test] for tests; here all is.
#![allow(clippy::unwrap_used)]

mod compare;
mod damage;
mod options;
mod resume;
mod support;
