//! How expressive an attention layer is, in the terms of arXiv 2412.19255, table 1.

use serde::Serialize;

/// Capacity of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// Query heads.
    pub heads: usize,
    /// Factorization rank per head: the rank of one head's query-key circuit.
    pub rank_per_head: usize,
    /// Shared latent subspace dimension: width of the space all heads read keys (or values) from.
    pub shared_latent_dim: usize,
}

impl Capacity {
    /// Total effective rank: heads times rank per head.
    pub fn total_effective_rank(&self) -> usize {
        self.heads * self.rank_per_head
    }
}
