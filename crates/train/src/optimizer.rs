//! Updating weights: AdamW over the flat buffers, Muon for the layers' matrices as an option.

use crate::config::OptimizerConfig;
use keyfold_model::weights::{Flat, Weights};
use keyfold_ops::{
    adamw::{self, Clip, Norm},
    muon,
};
use keyfold_tensor::{Arena, Tensor};

/// First and second moments of one flat buffer.
struct Moments {
    first: Tensor,
    second: Tensor,
}

/// An optimizer and its state.
pub struct Optimizer {
    config: OptimizerConfig,
    matrices: Moments,
    vectors: Moments,
}

impl Optimizer {
    /// An optimizer for `weights`, moments at zero.
    pub fn new(config: OptimizerConfig, weights: &Weights, arena: &Arena) -> Self {
        let zeros = |flat: &Flat| arena.zeros(1, flat.value.len(), keyfold_core::DType::F32);
        let moments = |flat: &Flat| Moments { first: zeros(flat), second: zeros(flat) };
        Self { config, matrices: moments(&weights.matrices), vectors: moments(&weights.vectors) }
    }

    /// The state, by name, for a checkpoint.
    pub fn state(&self) -> [(&'static str, &Tensor); 4] {
        [
            ("matrices.first", &self.matrices.first),
            ("matrices.second", &self.matrices.second),
            ("vectors.first", &self.vectors.first),
            ("vectors.second", &self.vectors.second),
        ]
    }

    /// The norm of the whole gradient: NaN or infinite as soon as one element is.
    pub fn grad_norm(weights: &Weights) -> Norm {
        let grads = [&weights.matrices, &weights.vectors].map(|flat| flat.grad.as_ref());
        Norm::of(&grads.into_iter().flatten().collect::<Vec<_>>())
    }

    /// Makes update number `step` (from 1) at learning rate `lr`, with the gradient clipped if there is a `clip`. Nothing
    /// changes when the gradient's norm is not finite.
    pub fn update(&mut self, weights: &mut Weights, step: u64, lr: f64, clip: Option<Clip<'_>>) {
        match self.config {
            OptimizerConfig::Adamw { betas, eps, weight_decay } => {
                let mut hyper = hyper(step, lr, 1.0, betas, eps, weight_decay);
                adam(&mut weights.matrices, &mut self.matrices, &hyper, clip);
                hyper.weight_decay = 0.0;
                adam(&mut weights.vectors, &mut self.vectors, &hyper, clip);
            }
            OptimizerConfig::Muon { momentum, lr_ratio, betas, eps, weight_decay } => {
                let Some(grad_scale) = clip.map_or(Some(1.0), |clip| clip.factor()) else { return };
                let mut hyper = hyper(step, lr, grad_scale, betas, eps, weight_decay);
                let mut offset = 0;
                let places: Vec<(usize, usize, usize, bool)> = weights
                    .declared()
                    .iter()
                    .filter(|weight| weight.is_matrix())
                    .map(|weight| {
                        let start = offset;
                        offset += weight.len();
                        // Embedding and head are look-ups over token ids, not maps between features.
                        (start, weight.shape[0], weight.shape[1], weight.name.starts_with("model.layers."))
                    })
                    .collect();
                let Some(grad) = weights.matrices.grad.clone() else { return };
                for (start, rows, cols, inner) in places {
                    let view = |flat: &Tensor| flat.columns(start, rows * cols);
                    if inner {
                        let settings = muon::Hyper { lr: lr * lr_ratio, momentum, weight_decay, grad_scale };
                        let matrix = |flat: &Tensor| view(flat).reshape(rows, cols);
                        muon::step(
                            &mut matrix(&weights.matrices.value),
                            &matrix(&grad),
                            &mut matrix(&self.matrices.first),
                            &settings,
                        );
                    } else {
                        adamw::step(
                            &mut view(&weights.matrices.value),
                            &view(&grad),
                            &mut view(&self.matrices.first),
                            &mut view(&self.matrices.second),
                            None,
                            &hyper,
                            None,
                        );
                    }
                }
                hyper.weight_decay = 0.0;
                adam(&mut weights.vectors, &mut self.vectors, &hyper, None);
                weights.refresh();
            }
        }
    }
}

fn hyper(step: u64, lr: f64, grad_scale: f64, betas: [f64; 2], eps: f64, weight_decay: f64) -> adamw::Hyper {
    adamw::Hyper { lr, beta1: betas[0], beta2: betas[1], eps, weight_decay, step, grad_scale }
}

fn adam(flat: &mut Flat, moments: &mut Moments, hyper: &adamw::Hyper, clip: Option<Clip<'_>>) {
    if let Some(grad) = &flat.grad {
        let (first, second) = (&mut moments.first, &mut moments.second);
        adamw::step(&mut flat.value, grad, first, second, flat.copy.as_mut(), hyper, clip);
    }
}
