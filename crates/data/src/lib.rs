//! Text in, batches of token ids out.
//!
//! Place in the workspace: beside the model, below the trainer; knows nothing of tensors. The path of
//! a byte is `corpus` (files to documents) -> `tokenizer` -> `cache` (a memory-mapped file of ids) ->
//! `sampler` (rows and batches). `stories` makes documents instead of reading them, and marks the words
//! that only recall can give. `source` joins all of it behind one type, [`Dataset`].
//!
//! Invariants: the same specification, seed and text give the same batches on every machine and with
//! any number of threads; a restored [`SamplerState`] continues with exactly the batches that an
//! uninterrupted run would have seen; no input, however broken, makes the library panic.

pub mod cache;
pub mod corpus;
mod error;
pub mod fetch;
mod files;
pub mod mix;
pub mod sampler;
pub mod source;
pub mod stories;
pub mod tokenizer;

pub use error::DataError;
pub use sampler::{Batch, SamplerState};
pub use source::{DataSpec, Dataset, Description, Prepare, SourceSpec, Validation};
pub use tokenizer::{ChatTemplate, Message, StreamDecoder, Tokenizer, TokenizerSpec};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, DataError>;

/// The text of the end-of-document token, and the line that separates documents in a text file.
pub const END_OF_TEXT: &str = "<|endoftext|>";
