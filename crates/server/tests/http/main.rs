//! The server over real connections, with a fake model behind it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api;
mod limits;
mod streams;
mod sturdy;
mod support;
