//! The factorised queries of MFA and MFA-KR: hidden -> rank r -> m heads of C (arXiv 2412.19255, eq. of MFA; the norm
//! on the latent query is Step-3's, arXiv 2507.19427, section 2).

use super::Shared;
use crate::{
    error::{ConfigError, WeightError},
    tape::{Tape, Var},
    weights::{Declarations, Init, Param, Scope},
};

/// Sizes of factorised queries.
#[derive(Clone, Copy, Debug)]
pub(super) struct QuerySizes {
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) rank: usize,
    pub(super) norm: bool,
}

impl QuerySizes {
    /// Declares the weights behind the down projection, which is declared with the key's as one matrix.
    pub(super) fn declare(self, list: &mut Declarations) -> Result<(), ConfigError> {
        if self.norm {
            list.vector("inter_norm.weight", self.rank, Init::Ones)?;
        }
        list.matrix("wq.weight", self.heads * self.head_dim, self.rank)
    }

    /// FLOPs per token of both factors.
    pub(super) fn flops(self, hidden: usize) -> u64 {
        2 * (self.rank * (hidden + self.heads * self.head_dim)) as u64
    }
}

/// The second factor and the norm before it.
pub(super) struct Query {
    norm: Option<Param>,
    up: Param,
    eps: f32,
}

impl Query {
    pub(super) fn new(sizes: QuerySizes, scope: &Scope<'_>, shared: &Shared) -> Result<Self, WeightError> {
        let norm = if sizes.norm { Some(scope.get("inter_norm.weight")?) } else { None };
        Ok(Self { norm, up: scope.get("wq.weight")?, eps: shared.rms_norm_eps })
    }

    /// Latent queries [T, r] to queries [T, m * C].
    pub(super) fn forward(&self, tape: &mut Tape, latent: &Var) -> Var {
        match &self.norm {
            Some(norm) => {
                let normed = tape.add_norm(latent.clone(), None, norm, self.eps).1;
                tape.linear(&normed, &self.up)
            }
            None => tape.linear(latent, &self.up),
        }
    }
}
