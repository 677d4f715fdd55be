//! Training runs: trainer, optimizers, checkpoints that survive anything, comparisons, plots and reports.
//!
//! [`run::run`] is a run in a folder, [`trainer::Trainer`] one in memory, [`compare::compare`] several that differ in their
//! attention alone.
//!
//! # Example
//! An MFA model built, trained for a step, and decoded from its cache:
//! ```
//! use keyfold_core::DType;
//! use keyfold_model::{Decoder, LanguageModel, ModelConfig, Sequences};
//! use keyfold_tensor::Arena;
//! use keyfold_train::{config::OptimizerConfig, optimizer::Optimizer};
//!
//! let config: ModelConfig = serde_json::from_value(serde_json::json!({
//!     "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
//!     "max_position_embeddings": 64,
//!     "attention": { "kind": "mfa", "heads": 8, "head_dim": 16 },
//! }))?;
//! let arena = Arena::new();
//! let mut model = LanguageModel::new(&config, 0, &arena)?;
//! let mut optimizer = Optimizer::new(OptimizerConfig::default(), model.weights(), &arena);
//!
//! let ids: Vec<u32> = b"one wide key and value, many low-rank query heads".map(u32::from).to_vec();
//! let tokens = ids.len() - 1;
//! let sequences = Sequences::new(1, tokens);
//! let loss = model.forward_backward(&ids[..tokens], &ids[1..], &sequences, 1.0 / tokens as f32).read();
//! optimizer.update(model.weights_mut(), 1, 1e-3, None);
//! assert!(model.evaluate(&ids[..tokens], &ids[1..], &sequences, None).sum < loss.sum);
//!
//! let decoder = Decoder::new(&config, model.weights())?;
//! let mut cache = decoder.cache(64, DType::Bf16)?;
//! let logits = decoder.step(&ids, &mut cache);
//! assert_eq!((logits.cols(), cache.len()), (256, ids.len()));
//! assert_eq!(cache.bytes_per_token(), 2 * (2 * 16) * 2); // layers x (k, v) of 16 x 2 bytes
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod atomic;
pub mod bench;
pub mod checkpoint;
pub mod checksums;
pub mod compare;
pub mod config;
pub mod evaluate;
pub mod memory;
pub mod metrics;
pub mod optimizer;
pub mod plot;
pub mod report;
pub mod run;
pub mod run_dir;
pub mod schedule;
pub mod tensorboard;
pub mod trainer;
