//! Decoder language models that differ only in their attention.
//!
//! The boundary is drawn around the part that differs: an attention design is one file in [`attention`], and everything
//! else (tape, block, cache, checkpoint, generation) is shared by all of them.

pub mod attention;
mod block;
mod cache;
pub mod checkpoint;
mod config;
mod decoder;
mod decoding;
mod error;
pub mod families;
mod generate;
mod lm;
mod match_params;
mod mlp;
mod placement;
pub mod position;
mod recorded;
mod sequences;
pub mod tape;
pub mod weights;

pub use cache::{Cache, Chunk, PagedCache};
pub use config::{Activation, LocalConfig, ModelConfig, MoeConfig, RouterScoring};
pub use decoder::Decoder;
pub use decoding::Decoding;
pub use error::{CheckpointError, ConfigError, WeightError};
pub use generate::{Generation, Request, Stop, generate};
pub use lm::{LanguageModel, ModelError, TapeOptions};
pub use match_params::{MatchedModel, Matcher, match_params};
pub use placement::CacheStep;
pub use sequences::Sequences;
pub use weights::InitConfig;
