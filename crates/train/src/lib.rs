//! Training runs.

pub mod atomic;
pub mod bench;
pub mod checkpoint;
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
