//! The KV cache: pages of token rows ([`PagedCache`]), and the plain case of one sequence ([`Cache`]).

use crate::config::ModelConfig;
use crate::error::ConfigError;
use keyfold_core::{CacheLayout, DType};
use keyfold_ops::{attention::Paged, attention::Sequence, cast, rope::Positions};
use keyfold_tensor::{Arena, Tensor};

/// Cached tokens of many sequences. Per layer a matrix with a row per token that holds all planes of the layout, side by
/// side; page p is the rows from `p * page_size` on.
///
/// Neighbouring planes are one wider matrix, so a key made of two planes (MLA's latent and rope key) is read as it lies.
/// Who owns which page is the caller's business: see [`Chunk::pages`].
pub struct PagedCache {
    layout: CacheLayout,
    layers: Vec<Tensor>,
    page_size: usize,
    pages: usize,
}

/// Tokens of one sequence that are to be computed.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The tokens.
    pub tokens: &'a [u32],
    /// Tokens of the sequence before these, already in its pages.
    pub past: usize,
    /// The sequence's pages in order: the token at position j is row `j % page_size` of page `pages[j / page_size]`.
    /// Pages that are written here (those of `tokens`) are in no other chunk of the batch.
    pub pages: &'a [u32],
    /// Of how many of the last tokens logits are wanted.
    pub logits: usize,
}

impl PagedCache {
    /// Room for `pages` pages of `page_size` tokens of a model, planes stored as `dtype`. Pages of 64 tokens, or a
    /// multiple, are read fastest.
    ///
    /// # Errors
    /// When the model's design cannot be cached, or a size is 0.
    pub fn new(
        config: &ModelConfig,
        pages: usize,
        page_size: usize,
        dtype: DType,
        arena: &Arena,
    ) -> Result<Self, ConfigError> {
        if page_size == 0 {
            return Err(ConfigError::value("page_size", "at least 1", page_size));
        }
        let layout = config.attention.design().cache_layout()?;
        let width = layout.elements_per_token();
        let rows =
            pages.checked_mul(page_size).filter(|rows| rows.checked_mul(width * dtype.bytes()).is_some());
        let rows = rows.ok_or_else(|| ConfigError::value("pages", "fewer bytes than addresses", pages))?;
        let layers = (0..config.num_hidden_layers).map(|_| arena.tensor(rows, width, dtype)).collect();
        Ok(Self { layout, layers, page_size, pages })
    }

    /// Tokens of a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// What a token's row holds in every layer.
    pub fn layout(&self) -> &CacheLayout {
        &self.layout
    }

    /// Bytes each token takes, all layers.
    pub fn bytes_per_token(&self) -> usize {
        self.layers.iter().map(|rows| rows.cols() * rows.dtype().bytes()).sum()
    }

    /// Bytes of memory set aside for all layers.
    pub fn bytes(&self) -> usize {
        self.bytes_per_token() * self.page_size * self.pages
    }
}

/// The cache of one sequence: a single page for all its tokens.
pub struct Cache {
    memory: PagedCache,
    len: usize,
}

impl Cache {
    /// Room for `capacity` tokens of a model, planes stored as `dtype`.
    ///
    /// # Errors
    /// As [`PagedCache::new`].
    pub fn new(
        config: &ModelConfig,
        capacity: usize,
        dtype: DType,
        arena: &Arena,
    ) -> Result<Self, ConfigError> {
        Ok(Self { memory: PagedCache::new(config, 1, capacity, dtype, arena)?, len: 0 })
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
        self.memory.page_size
    }

    /// Bytes each token takes, all layers.
    pub fn bytes_per_token(&self) -> usize {
        self.memory.bytes_per_token()
    }

    /// Bytes of memory set aside for all layers.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// Forgets the tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The chunk of `tokens` after those held, and the memory it goes to; counts them as held.
    pub(crate) fn append<'a>(&mut self, tokens: &'a [u32], logits: usize) -> (Chunk<'a>, &mut PagedCache) {
        let past = self.len;
        self.len += tokens.len();
        (Chunk { tokens, past, pages: &[0], logits }, &mut self.memory)
    }
}

/// Which rows of the cache, and which positions, the new tokens of a batch have.
pub(crate) struct Placement<'a> {
    sequences: Vec<Sequence<'a>>,
    positions: Vec<u32>,
    /// Neighbouring tokens whose rows are neighbours too: first token, first row, how many.
    runs: Vec<(usize, usize, usize)>,
    page_size: usize,
}

impl<'a> Placement<'a> {
    /// # Panics
    /// When a chunk's tokens do not fit its pages.
    pub(crate) fn new(batch: &[Chunk<'a>], page_size: usize) -> Self {
        let mut placement =
            Self { sequences: Vec::new(), positions: Vec::new(), runs: Vec::new(), page_size };
        for Chunk { tokens, past, pages, .. } in batch {
            let end = past + tokens.len();
            assert!(
                end <= pages.len() * page_size,
                "decoder step beyond its pages: {end} tokens in {} pages of {page_size}",
                pages.len()
            );
            let mut at = *past;
            while at < end {
                let count = (page_size - at % page_size).min(end - at);
                let row = pages[at / page_size] as usize * page_size + at % page_size;
                placement.runs.push((placement.positions.len(), row, count));
                placement.positions.extend((at..at + count).map(|position| position as u32));
                at += count;
            }
            placement.sequences.push(Sequence { past: *past, new: tokens.len(), pages });
        }
        placement
    }
}

/// One layer's cache while new tokens are appended to its sequences.
pub struct CacheStep<'a> {
    rows: &'a Tensor,
    layout: &'a CacheLayout,
    placement: &'a Placement<'a>,
}

impl<'a> CacheStep<'a> {
    pub(crate) fn new(cache: &'a PagedCache, layer: usize, placement: &'a Placement<'a>) -> Self {
        Self { rows: &cache.layers[layer], layout: &cache.layout, placement }
    }

    /// Tokens being appended, of all sequences.
    pub(crate) fn new_tokens(&self) -> usize {
        self.placement.positions.len()
    }

    /// Position of each of them within its sequence.
    pub(crate) fn positions(&self) -> Positions<'a> {
        Positions::Of(&self.placement.positions)
    }

    /// Which rows of a plane are whose.
    pub(crate) fn paged(&self) -> Paged<'a> {
        Paged { page_size: self.placement.page_size, sequences: &self.placement.sequences }
    }

    /// Stores the new tokens' rows of plane `index`: `values` [new, width].
    pub(crate) fn write(&self, index: usize, values: &Tensor) {
        let plane = self.planes(index, 1);
        for (first, row, count) in &self.placement.runs {
            cast::copy(&values.row_range(*first, *count), &mut plane.row_range(*row, *count));
        }
    }

    /// The rows of `count` neighbouring planes from `index` on, of all pages.
    pub(crate) fn planes(&self, index: usize, count: usize) -> Tensor {
        let width = |range: std::ops::Range<usize>| self.layout.planes()[range].iter().map(|p| p.width).sum();
        self.rows.columns(width(0..index), width(index..index + count))
    }
}
