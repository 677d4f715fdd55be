//! One layer: attention and MLP around a residual stream.

use crate::{
    config::ModelConfig,
    error::WeightError,
    mlp::Mlp,
    tape::{Tape, Var},
    weights::{Param, Scope},
};

/// The parts of a layer that every attention design shares: norms and MLP.
pub(crate) struct Block {
    input_norm: Param,
    /// Gemma's norm of what attention adds to the stream.
    attention_norm: Option<Param>,
    mlp_norm: Param,
    /// Gemma's norm of what the MLP adds to the stream.
    output_norm: Option<Param>,
    mlp: Mlp,
    eps: f32,
}

impl Block {
    pub(crate) fn new(config: &ModelConfig, layer: usize, scope: &Scope<'_>) -> Result<Self, WeightError> {
        let after_attention = scope.get("post_attention_layernorm.weight")?;
        let (attention_norm, mlp_norm, output_norm) = match config.post_norms {
            false => (None, after_attention, None),
            true => (
                Some(after_attention),
                scope.get("pre_feedforward_layernorm.weight")?,
                Some(scope.get("post_feedforward_layernorm.weight")?),
            ),
        };
        Ok(Self {
            input_norm: scope.get("input_layernorm.weight")?,
            attention_norm,
            mlp_norm,
            output_norm,
            mlp: Mlp::new(config, layer, &scope.under("mlp."))?,
            eps: config.rms_norm_eps as f32,
        })
    }

    /// Takes the residual stream `x` and its pending update, returns both after this layer. The pending update is added
    /// by the next norm, which reads the stream anyway.
    pub(crate) fn forward(
        &self,
        tape: &mut Tape,
        x: Var,
        update: Option<Var>,
        attention: impl FnOnce(&mut Tape, &Var) -> Var,
    ) -> (Var, Var) {
        let (x, normed) = tape.add_norm(x, update, &self.input_norm, self.eps);
        let mixed = attention(tape, &normed);
        drop(normed);
        let mixed = self.normalised(tape, mixed, self.attention_norm.as_ref());
        let (x, normed) = tape.add_norm(x, Some(mixed), &self.mlp_norm, self.eps);
        let answer = self.mlp.forward(tape, &normed);
        drop(normed);
        (x, self.normalised(tape, answer, self.output_norm.as_ref()))
    }

    fn normalised(&self, tape: &mut Tape, update: Var, norm: Option<&Param>) -> Var {
        match norm {
            None => update,
            Some(norm) => tape.rms_norm(&update, norm, self.eps),
        }
    }
}
