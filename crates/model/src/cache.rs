//! The KV cache: pages of token rows ([`PagedCache`]), and the plain case of one sequence ([`Cache`]).

use crate::{config::ModelConfig, error::ConfigError, recorded::Recorded};
use keyfold_core::{CacheLayout, DType, SCALE_BLOCK, row_width};
use keyfold_tensor::{Arena, Device, Tensor};

/// Cached tokens of many sequences. Per layer a matrix with a row per token that holds all planes of the layout, side by
/// side; page p is the rows from `p * page_size` on. On a GPU rows, and pieces of planes that are read one by one, are rounded up to
/// 16 bytes. In 8 bits the elements of all rows lie one row behind the other, and behind them the scales of all rows.
///
/// Neighbouring planes are one wider matrix, so a key made of two planes (MLA's latent and rope key) is read as it lies.
/// Who owns which page is the caller's business: see [`Chunk::pages`].
pub struct PagedCache {
    layout: CacheLayout,
    /// Where each plane begins, and its pieces lie.
    places: Vec<Place>,
    layers: Vec<Tensor>,
    page_size: usize,
    pages: usize,
    /// Steps of decoding over this memory that are recorded on a GPU.
    pub(crate) recorded: Vec<Recorded>,
}

/// Where a plane lies in a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) start: usize,
    /// Equal pieces, and columns from one to the next.
    pub(crate) pieces: usize,
    pub(crate) step: usize,
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
    /// multiple, are read fastest; on a GPU pages of any power of two, of which those of 16 and more are read equally fast.
    ///
    /// # Errors
    /// When the model's design cannot be cached, a size is 0, or the device has no kernels for caches of `dtype`: on a GPU there
    /// are those of bf16 and, but for TPA and planes that are no multiples of [`SCALE_BLOCK`] wide, of 8 bits.
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
        let on_gpu = arena.device() != Device::Cpu;
        let layout = config.attention.design().cache_layout()?;
        match (on_gpu, dtype) {
            (false, DType::Fp8) => {
                return Err(ConfigError::value("kv_dtype", "f32 or bf16 on the CPU", dtype));
            }
            (true, DType::F32) => return Err(ConfigError::value("kv_dtype", "bf16 or fp8 on a GPU", dtype)),
            (true, DType::Fp8) => check_blocks(config, &layout)?,
            _ => {}
        }
        let (places, width) = placed(config, dtype, arena.device())?;
        let rows = pages.checked_add(usize::from(on_gpu)).and_then(|pages| pages.checked_mul(page_size));
        let rows = rows.filter(|rows| rows.checked_mul(width * dtype.bytes()).is_some());
        let rows = rows.ok_or_else(|| ConfigError::value("pages", "fewer bytes than addresses", pages))?;
        let layers = (0..config.num_hidden_layers).map(|_| arena.tensor(rows, width, dtype)).collect();
        Ok(Self { layout, places, layers, page_size, pages, recorded: Vec::new() })
    }

    /// Bytes that a token takes on `device`, all layers, planes stored as `dtype`.
    ///
    /// # Errors
    /// When the model's design cannot be cached.
    pub fn bytes_of_a_token(
        config: &ModelConfig,
        dtype: DType,
        device: Device,
    ) -> Result<usize, ConfigError> {
        let (_, width) = placed(config, dtype, device)?;
        Ok(width * config.num_hidden_layers * dtype.bytes())
    }

    /// Tokens of a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// The memory of each layer, [pages * page_size, all planes and scales], to be filled by whoever measures.
    pub fn layers(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter()
    }

    /// The memory of layer `index`.
    pub(crate) fn layer(&self, index: usize) -> &Tensor {
        &self.layers[index]
    }

    /// Where plane `index` lies in the rows of a layer.
    pub(crate) fn place(&self, index: usize) -> Place {
        self.places[index]
    }

    /// A page of no sequence, which a GPU's cache has behind the others: what steps of fewer sequences than were recorded
    /// write to.
    pub(crate) fn scrap(&self) -> u32 {
        self.pages as u32
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

/// Whether the planes of `layout` can be kept in 8 bits: each begins with a block of its own.
fn check_blocks(config: &ModelConfig, layout: &CacheLayout) -> Result<(), ConfigError> {
    let odd = layout.planes().iter().find(|plane| !plane.width.is_multiple_of(SCALE_BLOCK));
    if let Some(plane) = odd {
        let expected = format!(
            "bf16: the `{}` of a token has {} elements, no multiple of {SCALE_BLOCK}",
            plane.name, plane.width
        );
        return Err(ConfigError::value("kv_dtype", expected, DType::Fp8));
    }
    match config.attention.design().holds_8_bits() {
        true => Ok(()),
        false => {
            let expected = format!("bf16 for {}", config.attention.kind());
            Err(ConfigError::value("kv_dtype", expected, DType::Fp8))
        }
    }
}

/// Where the planes of a model lie in a row, and the elements of a row.
fn placed(config: &ModelConfig, dtype: DType, device: Device) -> Result<(Vec<Place>, usize), ConfigError> {
    let design = config.attention.design();
    let layout = design.cache_layout()?;
    // The copy engine of a GPU reads what begins at multiples of 16 bytes.
    let unit = if device == Device::Cpu { 1 } else { 16 / dtype.bytes() };
    let (mut width, mut places) = (0usize, Vec::new());
    for (index, plane) in layout.planes().iter().enumerate() {
        let pieces = design.pieces(index);
        let unit = if pieces > 1 { unit } else { 1 };
        let (start, step) = (width.next_multiple_of(unit), (plane.width / pieces).next_multiple_of(unit));
        places.push(Place { start, pieces, step });
        width = start + pieces * step;
    }
    // And scales.
    let width = row_width(width, dtype).next_multiple_of(unit);
    Ok((places, width))
}

/// Tokens of a page of one sequence's cache on a GPU, whose kernels read pages of a power of two.
const DEVICE_PAGE: usize = 64;

/// The cache of one sequence: a single page for all its tokens, or pages in order on a GPU.
pub struct Cache {
    memory: PagedCache,
    pages: Vec<u32>,
    capacity: usize,
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
        let (pages, page_size) = match arena.device() {
            Device::Cpu => (1, capacity),
            Device::Cuda(_) => (capacity.div_ceil(DEVICE_PAGE), DEVICE_PAGE),
        };
        let memory = PagedCache::new(config, pages, page_size, dtype, arena)?;
        Ok(Self { memory, pages: (0..pages as u32).collect(), capacity, len: 0 })
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
    pub(crate) fn append<'a>(
        &'a mut self,
        tokens: &'a [u32],
        logits: usize,
    ) -> (Chunk<'a>, &'a mut PagedCache) {
        let past = self.len;
        self.len += tokens.len();
        (Chunk { tokens, past, pages: &self.pages, logits }, &mut self.memory)
    }
}

#[cfg(test)]
mod tests;
