//! Matrices that read the same input.

use super::Param;
use crate::error::WeightError;
use keyfold_tensor::Tensor;

/// Matrices `[out, in]` of one input width, whose outputs lie side by side.
///
/// Those that follow one another in memory are one matrix here: what is declared side by side is computed as one
/// product, while a mapped file's tensors are used where they lie.
#[derive(Clone, Debug)]
pub struct Projection {
    pub(crate) parts: Vec<Param>,
    /// `[1, sum of out]`.
    pub(crate) bias: Option<Param>,
    pub(super) outputs: usize,
}

impl Projection {
    pub(super) fn new(params: Vec<Param>, biases: Option<Vec<Param>>) -> Result<Self, WeightError> {
        let outputs = params.iter().map(|param| param.value.rows()).sum();
        let mut parts: Vec<Param> = Vec::with_capacity(params.len());
        for param in params {
            match parts.last_mut().and_then(|last| Some((last.joined(&param)?, last))) {
                Some((joined, last)) => *last = joined,
                None => parts.push(param),
            }
        }
        let bias = match biases {
            None => None,
            Some(biases) => {
                let names = || WeightError::NotAdjacent(vec![format!("{} biases", biases.len())]);
                let mut joined: Option<Param> = None;
                for bias in &biases {
                    joined = Some(match joined {
                        None => bias.clone(),
                        Some(before) => before.joined_columns(bias).ok_or_else(names)?,
                    });
                }
                joined
            }
        };
        Ok(Self { parts, bias, outputs })
    }

    /// Columns of the output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }
}

impl Param {
    /// Both as one matrix, `next` below, if they lie so.
    fn joined(&self, next: &Self) -> Option<Self> {
        let grad = match (&self.grad, &next.grad) {
            (Some(grad), Some(next)) => Some(grad.joined(next)?),
            (None, None) => None,
            _ => return None,
        };
        Some(Self { value: self.value.joined(&next.value)?, grad })
    }

    /// Both as one row, `next` behind, if they lie so.
    fn joined_columns(&self, next: &Self) -> Option<Self> {
        let column = |tensor: &Tensor| tensor.reshape(tensor.len(), 1);
        let both = |a: &Tensor, b: &Tensor| {
            let joined = column(a).joined(&column(b))?;
            Some(joined.reshape(1, joined.rows()))
        };
        let grad = match (&self.grad, &next.grad) {
            (Some(grad), Some(next)) => Some(both(grad, next)?),
            (None, None) => None,
            _ => return None,
        };
        Some(Self { value: both(&self.value, &next.value)?, grad })
    }
}
