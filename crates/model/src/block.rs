//! One layer: attention and MLP around a residual stream.

use crate::{
    error::WeightError,
    tape::{Tape, Var},
    weights::{Param, Scope},
};

/// The parts of a layer that every attention design shares: norms and SwiGLU MLP (arXiv 2002.05202).
pub(crate) struct Block {
    input_norm: Param,
    post_norm: Param,
    gate_up: Param,
    down: Param,
    eps: f32,
}

impl Block {
    pub(crate) fn new(scope: &Scope<'_>, eps: f32) -> Result<Self, WeightError> {
        Ok(Self {
            input_norm: scope.get("input_layernorm.weight")?,
            post_norm: scope.get("post_attention_layernorm.weight")?,
            gate_up: scope.span(&["mlp.gate_proj.weight", "mlp.up_proj.weight"])?,
            down: scope.get("mlp.down_proj.weight")?,
            eps,
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
        let (x, normed) = tape.add_norm(x, Some(mixed), &self.post_norm, self.eps);
        let gate_up = tape.linear(&normed, &self.gate_up);
        drop(normed);
        let activated = tape.silu_mul(&gate_up);
        drop(gate_up);
        (x, tape.linear(&activated, &self.down))
    }
}
