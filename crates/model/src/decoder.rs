//! The language model that generates: attention in the form that reads a cache, for one sequence or many at once.

use crate::{
    attention::CachedAttention,
    block::Block,
    cache::{Cache, Chunk, PagedCache},
    config::ModelConfig,
    error::{ConfigError, WeightError},
    lm::{ModelError, Trunk, shared},
    placement::{CacheStep, Inputs, Placement},
    tape::Tape,
    weights::Weights,
};
use keyfold_core::DType;
use keyfold_ops::{cast, linear};
use keyfold_tensor::{Arena, Device, Tensor};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes of unused buffers that are kept whatever batches need.
const POOL_SLACK: usize = 16 << 20;

/// A model that generates: attention in the form that reads a cache. It computes where its weights lie.
pub struct Decoder {
    id: u64,
    config: ModelConfig,
    arena: Arena,
    trunk: Trunk,
    layers: Vec<(Block, Box<dyn CachedAttention>)>,
    /// Whether steps may be recorded.
    records: AtomicBool,
}

impl Decoder {
    /// The decoding form of a model on `weights`, in the host's memory or, as bf16, in a GPU's. Weights that decoding uses in another form (MLA's absorbed, MFA-KR's
    /// folded projections) are computed here, once.
    ///
    /// # Errors
    /// When the weights are not those that `config` declares.
    pub fn new(config: &ModelConfig, weights: &Weights) -> Result<Self, ModelError> {
        let trunk = Trunk::new(config, weights)?;
        let shared = shared(config);
        let layers = (0..config.num_hidden_layers)
            .map(|layer| {
                let scope = weights.scope(format!("model.layers.{layer}."));
                let design = config.layer_attention(layer);
                let attention = design.design().decoding(&scope.under("self_attn."), &shared)?;
                Ok((Block::new(config, layer, &scope)?, attention))
            })
            .collect::<Result<_, WeightError>>()?;
        static IDS: AtomicU64 = AtomicU64::new(0);
        let arena = Arena::beside(&weights.vectors.value);
        // Mixtures of experts ask the host where tokens go.
        let experts = (0..config.num_hidden_layers).any(|layer| config.layer_moe(layer).is_some());
        let records = AtomicBool::new(arena.device() != Device::Cpu && !experts);
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        Ok(Self { id, config: config.clone(), arena, trunk, layers, records })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(crate) fn records(&self) -> bool {
        self.records.load(Ordering::Relaxed)
    }

    pub(crate) fn never_records(&self) {
        self.records.store(false, Ordering::Relaxed);
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.arena.device()
    }

    /// The shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Tokens of a prompt to compute at a time: more would take more memory and be hardly faster.
    pub fn chunk_tokens(&self) -> usize {
        match self.device() {
            Device::Cpu => 512,
            Device::Cuda(_) => 4096,
        }
    }

    /// An empty cache for `capacity` tokens.
    ///
    /// # Errors
    /// When `capacity` exceeds the model's longest sequence.
    pub fn cache(&self, capacity: usize, dtype: DType) -> Result<Cache, ConfigError> {
        if capacity > self.config.max_position_embeddings {
            let expected =
                format!("at most max_position_embeddings = {}", self.config.max_position_embeddings);
            return Err(ConfigError::value("capacity", expected, capacity));
        }
        Cache::new(&self.config, capacity, dtype, &self.arena)
    }

    /// Pages for the cached tokens of many sequences, for [`Decoder::forward`].
    ///
    /// # Errors
    /// As [`PagedCache::new`].
    pub fn paged_cache(
        &self,
        pages: usize,
        page_size: usize,
        dtype: DType,
    ) -> Result<PagedCache, ConfigError> {
        PagedCache::new(&self.config, pages, page_size, dtype, &self.arena)
    }

    /// Appends `ids` to the sequence in `cache`; logits of the last one, [1, vocab].
    ///
    /// # Panics
    /// When `ids` is empty or does not fit the cache.
    pub fn step(&self, ids: &[u32], cache: &mut Cache) -> Tensor {
        self.append(ids, 1, cache)
    }

    /// Appends `ids` to the sequence in `cache`; logits of each of them, [ids, vocab].
    ///
    /// # Panics
    /// When `ids` is empty or does not fit the cache.
    pub fn logits(&self, ids: &[u32], cache: &mut Cache) -> Tensor {
        self.append(ids, ids.len(), cache)
    }

    fn append(&self, ids: &[u32], logits: usize, cache: &mut Cache) -> Tensor {
        assert!(!ids.is_empty(), "decoder step without tokens");
        assert!(cache.len() + ids.len() <= cache.capacity(), "decoder step beyond the cache's capacity");
        let (chunk, memory) = cache.append(ids, logits);
        self.forward(&[chunk], memory)
    }

    /// Computes the tokens of every chunk of `batch`, prompts and single tokens mixed, and writes their rows into
    /// `cache`; the logits that the chunks want, in order: [sum of `Chunk::logits`, vocab].
    ///
    /// A sequence's logits do not depend on the others but for the rounding of matrix products, whose kernels depend on
    /// the number of rows.
    ///
    /// # Panics
    /// When a chunk does not fit its pages or the model's longest sequence, its pages are not in the cache, or it wants
    /// more logits than it has tokens.
    pub fn forward(&self, batch: &[Chunk<'_>], cache: &mut PagedCache) -> Tensor {
        if let Some(logits) = self.recorded_step(batch, cache) {
            return logits;
        }
        let inputs = Inputs::new(batch, cache.page_size(), None, &self.arena);
        let logits = self.compute(batch, &inputs, cache, &self.arena);
        self.bound_pool();
        logits
    }

    /// Batches come in all sizes, and each leaves buffers of its own sizes in the pool: together they may not be much more
    /// than what the largest batch needs. On a device, where giving memory back stops all work, the pool itself joins sizes.
    fn bound_pool(&self) {
        if self.arena.device() != Device::Cpu {
            return;
        }
        let stats = self.arena.stats();
        let (idle, largest) = (stats.reserved - stats.live, stats.peak - stats.live);
        if idle > 2 * largest + POOL_SLACK {
            self.arena.trim();
        }
    }

    /// [`Decoder::forward`] of what `inputs` say of `batch`, values in the memory of `arena`.
    pub(crate) fn compute(
        &self,
        batch: &[Chunk<'_>],
        inputs: &Inputs,
        cache: &PagedCache,
        arena: &Arena,
    ) -> Tensor {
        let mut wanted = Vec::new();
        let mut end = 0;
        for chunk in batch {
            let (new, logits) = (chunk.tokens.len(), chunk.logits);
            assert!(logits <= new, "decoder step of {new} tokens that wants {logits} logits");
            end += new;
            wanted.extend(end - logits..end);
        }
        if end == 0 {
            return arena.tensor(0, self.config.vocab_size, DType::F32);
        }
        let placement = Placement::new(batch, inputs, cache.page_size());
        let mut tape = Tape::inference(arena);
        let mut x = self.trunk.embed_indices(&mut tape, &inputs.ids);
        let mut update = None;
        for (index, (block, attention)) in self.layers.iter().enumerate() {
            let step = CacheStep::new(cache, index, &placement);
            let (stream, pending) =
                block.forward(&mut tape, x, update, |tape, x| attention.forward(tape, x, &step));
            x = stream;
            update = Some(pending);
        }
        let x = tape.add_norm(x, update, &self.trunk.norm, self.trunk.eps).1;
        tape.settle();
        let x = rows(x.value(), &wanted, arena);
        let mut logits = arena.tensor(x.rows(), self.config.vocab_size, DType::F32);
        linear::forward(&x, &self.trunk.head.value, None, &mut logits, false);
        logits
    }

    /// `x` in memory of its own.
    pub(crate) fn copy(&self, x: &Tensor) -> Tensor {
        let mut copy = self.arena.tensor(x.rows(), x.cols(), x.dtype());
        cast::copy(x, &mut copy);
        copy
    }
}

/// The rows `wanted` of `x`, in ascending order.
fn rows(x: &Tensor, wanted: &[usize], arena: &Arena) -> Tensor {
    let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else {
        return x.row_range(0, 0);
    };
    if last - first + 1 == wanted.len() {
        return x.row_range(*first, wanted.len());
    }
    let rows = arena.tensor(wanted.len(), x.cols(), x.dtype());
    for (to, from) in wanted.iter().enumerate() {
        cast::copy(&x.row_range(*from, 1), &mut rows.row_range(to, 1));
    }
    rows
}

#[cfg(test)]
mod tests;
