//! The MLP of a layer: dense, or a mixture of experts (arXiv 2401.06066, 2412.19437).

use crate::{
    config::{Activation, ModelConfig},
    error::WeightError,
    tape::{Tape, Var},
    weights::{Param, Projection, Scope},
};
use keyfold_ops::{glu, moe::Router};

/// The MLP of one layer.
pub(crate) enum Mlp {
    Dense(Box<Gated>),
    Moe(Box<Moe>),
}

/// A gated MLP (arXiv 2002.05202).
pub(crate) struct Gated {
    gate_up: Projection,
    down: Param,
    activation: glu::Activation,
}

/// Experts, of which each token passes a few.
pub(crate) struct Moe {
    router: Router,
    gate: Param,
    choice_bias: Option<Param>,
    experts: Vec<Gated>,
    shared: Option<Gated>,
}

impl Mlp {
    pub(crate) fn new(config: &ModelConfig, layer: usize, scope: &Scope<'_>) -> Result<Self, WeightError> {
        let activation = match config.activation {
            Activation::Silu => glu::Activation::Silu,
            Activation::GeluTanh => glu::Activation::GeluTanh,
        };
        let gated = |scope: &Scope<'_>| {
            Ok(Gated {
                gate_up: scope.project(&["gate_proj.weight", "up_proj.weight"])?,
                down: scope.get("down_proj.weight")?,
                activation,
            })
        };
        let Some(moe) = config.layer_moe(layer) else { return Ok(Self::Dense(Box::new(gated(scope)?))) };
        let choice_bias = match moe.choice_bias {
            true => Some(scope.get("gate.e_score_correction_bias")?),
            false => None,
        };
        let experts = (0..moe.experts).map(|expert| gated(&scope.under(&format!("experts.{expert}."))));
        Ok(Self::Moe(Box::new(Moe {
            router: moe.router(),
            gate: scope.get("gate.weight")?,
            choice_bias,
            experts: experts.collect::<Result<_, WeightError>>()?,
            shared: if moe.shared_size > 0 { Some(gated(&scope.under("shared_experts."))?) } else { None },
        })))
    }

    /// `x` [T, H], normalised: the update of the residual stream [T, H].
    pub(crate) fn forward(&self, tape: &mut Tape, x: &Var) -> Var {
        match self {
            Self::Dense(mlp) => mlp.forward(tape, x),
            Self::Moe(moe) => moe.forward(tape, x),
        }
    }
}

impl Gated {
    fn forward(&self, tape: &mut Tape, x: &Var) -> Var {
        tape.mlp(self.activation, x, &self.gate_up, &self.down)
    }
}

impl Moe {
    fn forward(&self, tape: &mut Tape, x: &Var) -> Var {
        tape.ready(x);
        let logits = tape.linear(x, &self.gate);
        let (weights, assigned) = tape.route(&logits, self.choice_bias.as_ref(), &self.router);
        let mut answers = Vec::with_capacity(self.experts.len());
        for (expert, assigned) in self.experts.iter().zip(assigned) {
            if assigned.tokens.is_empty() {
                continue;
            }
            let rows = tape.gather(x, &assigned.tokens);
            answers.push((expert.forward(tape, &rows), assigned));
        }
        let routed = tape.scatter(answers, &weights);
        match &self.shared {
            None => routed,
            Some(shared) => {
                let answer = shared.forward(tape, x);
                tape.add(&routed, &answer)
            }
        }
    }
}
