//! The KV cache of one sequence.

use crate::config::ModelConfig;
use crate::error::ConfigError;
use keyfold_core::{CacheLayout, DType};
use keyfold_tensor::{Arena, Tensor};

/// The cache of one sequence: per layer a matrix with a row per token that holds all planes of the layout, side by side.
///
/// Neighbouring planes are one wider matrix, so a key made of two planes (MLA's latent and rope key) is read as it lies.
pub struct Cache {
    layout: CacheLayout,
    layers: Vec<Tensor>,
    capacity: usize,
    len: usize,
}

impl Cache {
    /// Room for `capacity` tokens of a model, planes stored as `dtype`.
    pub fn new(
        config: &ModelConfig,
        capacity: usize,
        dtype: DType,
        arena: &Arena,
    ) -> Result<Self, ConfigError> {
        let layout = config.attention.design().cache_layout()?;
        let width = layout.elements_per_token();
        let layers = (0..config.num_hidden_layers).map(|_| arena.tensor(capacity, width, dtype)).collect();
        Ok(Self { layout, layers, capacity, len: 0 })
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes each token takes, all layers.
    pub fn bytes_per_token(&self) -> usize {
        self.layers.iter().map(|rows| rows.cols() * rows.dtype().bytes()).sum()
    }

    /// Bytes of memory set aside for all layers.
    pub fn bytes(&self) -> usize {
        self.bytes_per_token() * self.capacity
    }

    /// Forgets the tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(crate) fn advance(&mut self, new: usize) {
        self.len += new;
    }

    pub(crate) fn step(&self, layer: usize, new: usize) -> CacheStep<'_> {
        CacheStep { rows: &self.layers[layer], layout: &self.layout, past: self.len, new }
    }
}

/// One layer's cache while `new` tokens are appended to `past` ones.
pub struct CacheStep<'a> {
    rows: &'a Tensor,
    layout: &'a CacheLayout,
    /// Tokens already in the cache.
    pub past: usize,
    /// Tokens being appended.
    pub new: usize,
}

impl CacheStep<'_> {
    /// Stores the new tokens' rows of plane `index`: `values` [new, width].
    pub(crate) fn write(&self, index: usize, values: &Tensor) {
        let (column, width) = self.span(index, 1);
        let mut target = self.rows.columns(column, width).row_range(self.past, self.new);
        keyfold_ops::cast::copy(values, &mut target);
    }

    /// All tokens' rows, new ones included, of `count` neighbouring planes from `index` on.
    pub(crate) fn read(&self, index: usize, count: usize) -> Tensor {
        let (column, width) = self.span(index, count);
        self.rows.columns(column, width).row_range(0, self.past + self.new)
    }

    fn span(&self, index: usize, count: usize) -> (usize, usize) {
        let width = |range: std::ops::Range<usize>| self.layout.planes()[range].iter().map(|p| p.width).sum();
        (width(0..index), width(index..index + count))
    }
}
