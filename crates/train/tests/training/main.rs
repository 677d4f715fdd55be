//! Whole training runs of tiny models: what they write, how they stop, go on and fail.

mod compare;
mod damage;
mod options;
mod resume;
mod support;
