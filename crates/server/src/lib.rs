//! An HTTP server in OpenAI's form over [`keyfold_engine`].
//!
//! Requests are read and checked here ([`api`]), go through a bounded door to the engine's own thread ([`Service`]), and
//! their texts come back through mailboxes that hold what a slow reader has not read yet. Nothing here knows a model:
//! tests serve a fake one over real connections.

pub mod api;
mod config;
mod error;
mod grammar;
mod http;
mod metrics;
mod model;
mod page;
mod service;

pub use config::{Limits, ServerConfig};
pub use error::{ApiError, Kind};
pub use http::{ServeError, Server, keys_from};
pub use model::{CacheFacts, Defaults, Model};
pub use service::Service;
