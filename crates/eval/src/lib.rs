//! How well a model predicts a text.
//!
//! Perplexity is e to the mean loss per token, so it depends on how much text each token is predicted from. [`Windows`]
//! says which tokens are scored with how much before them; [`score`] runs a model over them.
//!
//! ```
//! use keyfold_eval::Windows;
//! // Windows of 8 tokens that follow one another, the second half of each scored.
//! let windows = Windows { context: 8, stride: None, prefix: 0 }.over(20).unwrap();
//! assert_eq!(windows.len(), 2);
//! assert_eq!((windows[1].tokens(), windows[1].scored()), (8..16, 12..16));
//! ```

mod perplexity;
mod windows;

pub use perplexity::{Score, score};
pub use windows::{Window, Windows, WindowsError};
