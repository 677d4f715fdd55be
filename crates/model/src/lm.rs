//! The language model that trains and scores whole sequences. Its other form, which generates from a cache, is
//! [`crate::Decoder`].

use crate::{
    attention::{Attention, Shared},
    block::Block,
    config::ModelConfig,
    error::{CheckpointError, ConfigError, WeightError},
    position::RopeTables,
    sequences::Sequences,
    tape::{Loss, Pending, Tape, Var, Watch},
    weights::{Param, Weights},
};
use keyfold_core::DType;
use keyfold_ops::{cross_entropy, indices::Indices};
use keyfold_tensor::{Arena, Tensor};
use std::sync::Arc;

/// What both forms of the model share.
pub(crate) struct Trunk {
    embedding: Param,
    pub(crate) norm: Param,
    pub(crate) head: Param,
    pub(crate) eps: f32,
    /// Factor on embeddings.
    scale: Option<f32>,
}

impl Trunk {
    pub(crate) fn new(config: &ModelConfig, weights: &Weights) -> Result<Self, WeightError> {
        let embedding = weights.get("model.embed_tokens.weight")?;
        let head =
            if config.tie_word_embeddings { embedding.clone() } else { weights.get("lm_head.weight")? };
        Ok(Self {
            embedding,
            norm: weights.get("model.norm.weight")?,
            head,
            eps: config.rms_norm_eps as f32,
            scale: config.embedding_scale.map(|scale| scale as f32),
        })
    }

    pub(crate) fn embed(&self, tape: &mut Tape, ids: &[u32]) -> Var {
        let x = tape.embedding(ids, &self.embedding);
        self.scaled(tape, x)
    }

    /// As [`Trunk::embed`], with ids where the weights are.
    pub(crate) fn embed_indices(&self, tape: &mut Tape, ids: &Indices) -> Var {
        let x = tape.embedding_of(ids, &self.embedding);
        self.scaled(tape, x)
    }

    fn scaled(&self, tape: &mut Tape, x: Var) -> Var {
        match self.scale {
            None => x,
            Some(scale) => tape.scale(&x, scale),
        }
    }
}

pub(crate) fn shared(config: &ModelConfig) -> Shared {
    Shared { rope: RopeTables::new(config.max_position_embeddings), rms_norm_eps: config.rms_norm_eps as f32 }
}

/// A model that is trained, or scores whole sequences.
pub struct LanguageModel {
    config: ModelConfig,
    weights: Weights,
    arena: Arena,
    trunk: Trunk,
    layers: Vec<Arc<Layer>>,
    options: TapeOptions,
}

struct Layer {
    block: Block,
    attention: Box<dyn Attention>,
}

/// How a training step trades memory for time.
#[derive(Clone, Copy, Debug)]
pub struct TapeOptions {
    /// Storage of values kept for the backward pass.
    pub saved_dtype: DType,
    /// Keep only each layer's input and run the layer again in the backward pass (arXiv 1604.06174).
    pub checkpoint_layers: bool,
}

impl Default for TapeOptions {
    fn default() -> Self {
        Self { saved_dtype: DType::F32, checkpoint_layers: false }
    }
}

impl LanguageModel {
    /// A model with initial weights.
    ///
    /// # Errors
    /// When `config` makes no model.
    pub fn new(config: &ModelConfig, seed: u64, arena: &Arena) -> Result<Self, ModelError> {
        config.validate()?;
        let weights = Weights::allocate(arena, config.declare()?, DType::F32, true);
        weights.initialise(seed);
        Self::with_weights(config, weights, arena)
    }

    /// A model on given weights.
    ///
    /// # Errors
    /// When the weights are not those that `config` declares.
    pub fn with_weights(config: &ModelConfig, weights: Weights, arena: &Arena) -> Result<Self, ModelError> {
        weights.refresh();
        let trunk = Trunk::new(config, &weights)?;
        let shared = shared(config);
        let layers = (0..config.num_hidden_layers)
            .map(|layer| {
                let scope = weights.scope(format!("model.layers.{layer}."));
                let design = config.layer_attention(layer);
                let attention = design.design().training(&scope.under("self_attn."), &shared)?;
                Ok(Arc::new(Layer { block: Block::new(config, layer, &scope)?, attention }))
            })
            .collect::<Result<_, WeightError>>()?;
        let options = TapeOptions::default();
        Ok(Self { config: config.clone(), weights, arena: arena.clone(), trunk, layers, options })
    }

    /// Sets how training steps trade memory for time.
    #[must_use]
    pub fn with_tape_options(mut self, options: TapeOptions) -> Self {
        self.options = options;
        self
    }

    /// The shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The weights, to be optimized.
    pub fn weights_mut(&mut self) -> &mut Weights {
        &mut self.weights
    }

    /// Where activations are allocated.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Adds the gradient of `scale` times the summed loss of predicting `targets` from `ids` to the weights' gradients.
    /// Targets of `u32::MAX` are left out.
    ///
    /// # Shapes
    /// `ids`, `targets`: batch * seq token ids.
    pub fn forward_backward(
        &self,
        ids: &[u32],
        targets: &[u32],
        sequences: &Sequences,
        scale: f32,
    ) -> Pending {
        let tape = Tape::recording(&self.arena, self.options.saved_dtype);
        self.run(tape, ids, targets, sequences, scale)
    }

    /// Does what [`Self::forward_backward`] does while `watch` looks at each op's results.
    pub fn forward_backward_watched(
        &self,
        ids: &[u32],
        targets: &[u32],
        sequences: &Sequences,
        scale: f32,
        watch: &Watch,
    ) {
        let tape = Tape::recording(&self.arena, self.options.saved_dtype).watched(watch);
        self.run(tape, ids, targets, sequences, scale);
    }

    fn run(
        &self,
        mut tape: Tape,
        ids: &[u32],
        targets: &[u32],
        sequences: &Sequences,
        scale: f32,
    ) -> Pending {
        let x = self.hidden(&mut tape, ids, sequences);
        let loss = tape.linear_cross_entropy(&x, &self.trunk.head, targets, scale);
        drop(x);
        tape.backward(Vec::new());
        loss
    }

    /// The loss of predicting `targets` from `ids`, and per token whether the likeliest token is the target.
    ///
    /// # Shapes
    /// `ids`, `targets`: batch * seq token ids.
    pub fn evaluate(
        &self,
        ids: &[u32],
        targets: &[u32],
        sequences: &Sequences,
        correct: Option<&mut [bool]>,
    ) -> Loss {
        let mut tape = Tape::inference(&self.arena);
        let x = self.hidden(&mut tape, ids, sequences);
        cross_entropy::evaluate(x.value(), &self.trunk.head.value, targets, None, None, correct)
    }

    /// Logits of every token.
    ///
    /// # Shapes
    /// `ids`: batch * seq; the result is [batch * seq, vocab].
    pub fn logits(&self, ids: &[u32], sequences: &Sequences) -> Tensor {
        let mut tape = Tape::inference(&self.arena);
        let x = self.hidden(&mut tape, ids, sequences);
        tape.linear(&x, &self.trunk.head).value().clone()
    }

    /// The normalised output of the last layer [T, H].
    fn hidden(&self, tape: &mut Tape, ids: &[u32], sequences: &Sequences) -> Var {
        let mut x = self.trunk.embed(tape, ids);
        let mut update = None;
        for (number, layer) in self.layers.iter().enumerate() {
            tape.enter(Some(number));
            let (stream, pending) = if self.options.checkpoint_layers && tape.is_recording() {
                let (layer, sequences) = (layer.clone(), sequences.clone());
                tape.checkpoint(x, update, move |tape, x, update| layer.forward(tape, x, update, &sequences))
            } else {
                layer.forward(tape, x, update, sequences)
            };
            x = stream;
            update = Some(pending);
        }
        tape.enter(None);
        let x = tape.add_norm(x, update, &self.trunk.norm, self.trunk.eps).1;
        tape.settle();
        x
    }
}

impl Layer {
    fn forward(&self, tape: &mut Tape, x: Var, update: Option<Var>, sequences: &Sequences) -> (Var, Var) {
        self.block.forward(tape, x, update, |tape, x| self.attention.forward(tape, x, sequences))
    }
}

/// A model that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The configuration makes no model.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights are others than the configuration declares.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}
