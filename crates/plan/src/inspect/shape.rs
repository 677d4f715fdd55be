//! One layer's attention.

use keyfold_core::{Capacity, Cost, Plane};
use keyfold_model::{
    ConfigError, ModelConfig,
    attention::AttentionConfig,
    weights::{Declared, Part},
};

/// What one layer's attention is, whatever the model around it.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// What is cached for each token.
    pub planes: Vec<Plane>,
    /// Elements of all planes.
    pub elements_per_token: u64,
    /// Capacity.
    pub capacity: Capacity,
    /// Cost of a decoded token.
    pub cost: Cost,
    /// Elements of all weights.
    pub parameters: u64,
    /// Those of the matrices.
    pub matrix_elements: u64,
}

impl Shape {
    /// The attention of a layer of width `hidden`.
    ///
    /// # Errors
    /// When its sizes make no attention, or overflow.
    pub fn of(attention: &AttentionConfig, hidden: usize) -> Result<Self, ConfigError> {
        let model = ModelConfig {
            vocab_size: 1,
            hidden_size: hidden,
            num_hidden_layers: 1,
            intermediate_size: 1,
            max_position_embeddings: 1,
            tie_word_embeddings: true,
            rms_norm_eps: 1e-5,
            init: Default::default(),
            activation: Default::default(),
            post_norms: false,
            embedding_scale: None,
            moe: None,
            local: None,
            attention: attention.clone(),
        };
        model.validate()?;
        let weights = model.declare()?;
        let own = || weights.iter().filter(|weight| weight.part == Part::Attention);
        Self::with(attention, hidden, own().map(len).sum(), own().filter(|w| w.is_matrix()).map(len).sum())
    }

    pub(super) fn with(
        attention: &AttentionConfig,
        hidden: usize,
        parameters: u64,
        matrix_elements: u64,
    ) -> Result<Self, ConfigError> {
        let design = attention.design();
        let layout = design.cache_layout()?;
        Ok(Self {
            planes: layout.planes().to_vec(),
            elements_per_token: layout.elements_per_token() as u64,
            capacity: design.capacity(),
            cost: design.cost(hidden),
            parameters,
            matrix_elements,
        })
    }
}

pub(super) fn len(weight: &Declared) -> u64 {
    weight.len() as u64
}
