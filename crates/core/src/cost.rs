//! What one attention layer costs per decoded token.

use serde::Serialize;
use std::ops::Add;

/// Work of decoding one token, split by what it grows with. One multiply-add counts as two FLOPs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// FLOPs of the projections; independent of the context.
    pub linear_flops: u64,
    /// FLOPs spent on each token of the context (scores and weighted sum).
    pub flops_per_context_token: u64,
    /// Cache elements read for each token of the context.
    pub elements_per_context_token: u64,
}

impl Cost {
    /// FLOPs of one decoded token that attends to `context` tokens.
    pub fn flops(&self, context: u64) -> u64 {
        self.linear_flops.saturating_add(self.flops_per_context_token.saturating_mul(context))
    }

    /// FLOPs per byte of cache read, at `bytes_per_element`: the arithmetic intensity of the attention core.
    pub fn intensity(&self, bytes_per_element: f64) -> f64 {
        self.flops_per_context_token as f64 / (self.elements_per_context_token as f64 * bytes_per_element)
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            linear_flops: self.linear_flops + other.linear_flops,
            flops_per_context_token: self.flops_per_context_token + other.flops_per_context_token,
            elements_per_context_token: self.elements_per_context_token + other.elements_per_context_token,
        }
    }
}
