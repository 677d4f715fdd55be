//! Continuous batching as pure logic: which tokens of which requests go through the model next, and in which pages of the
//! cache their rows lie.
//!
//! No tensor, thread, clock or socket is in here, so all of it is tested in milliseconds against a [`fake`] runner. The
//! engine knows a request only as tokens that are still to compute. A prompt has many and a text that is being written has
//! one (or a few, when the next ones are guessed): reading prompts in chunks, decoding, resuming after a preemption and
//! checking guesses are one rule.
//!
//! - [`Engine::step`] plans a batch, lets a [`Runner`] compute it, and tells what came of it.
//! - [`pages::PagePool`] counts who uses a page, and finds pages by what they hold.
//! - Sampling belongs to the runner; what it needs to remember for a request is its [`Runner::State`], which survives
//!   preemption, so that a text does not depend on who else is served.

mod config;
mod engine;
pub mod fake;
mod lookup;
pub mod pages;
mod request;
mod runner;
mod sequence;
mod share;
mod stop;

pub use config::{ConfigError, EngineConfig};
pub use engine::{Engine, Stats};
pub use lookup::Lookup;
pub use request::{
    Constraint, Detokenizer, End, Finish, Logprobs, REPETITION_PENALTY, Request, RequestError, RequestId,
    Sampling, Token, Update,
};
pub use runner::{Failure, Output, Runner, Work};
pub use stop::StopStrings;
