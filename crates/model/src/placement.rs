//! Where the new tokens of a batch go: their positions, and their rows of the cache.

use crate::cache::{Chunk, PagedCache, Place};
use keyfold_ops::{
    append::{self, Places},
    attention::{Heads, Paged, Plans, Sequence},
    fp8,
    indices::Indices,
    rope::{Positions, RopeTable},
};
use keyfold_tensor::{Arena, Tensor};

/// The new tokens of a batch: what they are, where they stand, and which rows of the cache are theirs.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) ids: Indices,
    pub(crate) positions: Indices,
    pub(crate) rows: Indices,
    pub(crate) plans: Plans,
}

impl Inputs {
    /// In the memory of `arena`; page tables have room for `most_pages`, if that is more than the batch needs.
    ///
    /// # Panics
    /// When a chunk's tokens do not fit its pages.
    pub(crate) fn new(
        batch: &[Chunk<'_>],
        page_size: usize,
        most_pages: Option<usize>,
        arena: &Arena,
    ) -> Self {
        let [ids, positions, rows] = words(batch, page_size).map(|words| Indices::new(arena, words));
        Self { ids, positions, rows, plans: most_pages.map_or_else(Plans::default, Plans::with_room) }
    }

    /// Those of the next step of as many sequences, which read from where these lie.
    pub(crate) fn update(&mut self, batch: &[Chunk<'_>], page_size: usize) {
        let [ids, positions, rows] = words(batch, page_size);
        self.ids.update(&ids);
        self.positions.update(&positions);
        self.rows.update(&rows);
        self.plans.update(&sequences(batch));
    }

    /// As [`Inputs::update`], where recorded steps have moved on by themselves.
    pub(crate) fn overwrite(&mut self, batch: &[Chunk<'_>], page_size: usize) {
        let [ids, positions, rows] = words(batch, page_size);
        self.ids.overwrite(&ids);
        self.positions.overwrite(&positions);
        self.rows.overwrite(&rows);
        self.plans.update(&sequences(batch));
    }
}

/// Ids, positions and cache rows of all tokens of `batch`.
fn words(batch: &[Chunk<'_>], page_size: usize) -> [Vec<u32>; 3] {
    let mut words = [Vec::new(), Vec::new(), Vec::new()];
    let [ids, positions, rows] = &mut words;
    for Chunk { tokens, past, pages, .. } in batch {
        let end = past + tokens.len();
        assert!(
            end <= pages.len() * page_size,
            "decoder step beyond its pages: {end} tokens in {} pages of {page_size}",
            pages.len()
        );
        ids.extend_from_slice(tokens);
        positions.extend((*past..end).map(|position| position as u32));
        rows.extend(
            (*past..end).map(|at| pages[at / page_size] * page_size as u32 + (at % page_size) as u32),
        );
    }
    words
}

fn sequences<'a>(batch: &[Chunk<'a>]) -> Vec<Sequence<'a>> {
    let sequence =
        |chunk: &Chunk<'a>| Sequence { past: chunk.past, new: chunk.tokens.len(), pages: chunk.pages };
    batch.iter().map(sequence).collect()
}

/// A batch on its way through the layers.
pub(crate) struct Placement<'a> {
    sequences: Vec<Sequence<'a>>,
    inputs: &'a Inputs,
    page_size: usize,
}

impl<'a> Placement<'a> {
    /// `inputs` are those of `batch`.
    pub(crate) fn new(batch: &[Chunk<'a>], inputs: &'a Inputs, page_size: usize) -> Self {
        Self { sequences: sequences(batch), inputs, page_size }
    }
}

/// One layer's cache while new tokens are appended to its sequences.
pub struct CacheStep<'a> {
    /// All planes side by side.
    rows: Tensor,
    scales: Option<Tensor>,
    cache: &'a PagedCache,
    placement: &'a Placement<'a>,
}

impl<'a> CacheStep<'a> {
    pub(crate) fn new(cache: &'a PagedCache, layer: usize, placement: &'a Placement<'a>) -> Self {
        let (rows, scales) = fp8::rows_of(cache.layer(layer), cache.layout().elements_per_token());
        Self { rows, scales, cache, placement }
    }

    /// Tokens being appended, of all sequences.
    pub(crate) fn new_tokens(&self) -> usize {
        self.placement.inputs.positions.len()
    }

    /// Position of each of them within its sequence.
    pub(crate) fn positions(&self) -> Positions<'a> {
        Positions::Of(&self.placement.inputs.positions)
    }

    /// Which rows of a plane are whose.
    pub(crate) fn paged(&self) -> Paged<'a> {
        let Placement { sequences, inputs, page_size } = self.placement;
        Paged { page_size: *page_size, sequences, plans: &inputs.plans }
    }

    /// Rotates queries, and stores keys (rotated, unless `raw_keys`) in plane 0 and values in plane 1.
    pub(crate) fn append(
        &self,
        q: Heads<'_>,
        k: Heads<'_>,
        v: Option<&Tensor>,
        rope: Option<&RopeTable>,
        raw_keys: bool,
    ) {
        let Inputs { positions, rows, .. } = self.placement.inputs;
        let places = Places { positions, rows, rope, raw_keys, scales: self.scales() };
        let mut values = v.map(|_| self.planes(1, 1));
        append::append(q, k, v, places, &mut self.planes(0, 1), values.as_mut());
    }

    /// Stores the new tokens' rows of plane `index`, whose pieces are packed in `values` [new, width].
    pub(crate) fn write(&self, index: usize, values: &Tensor) {
        let Place { start, pieces, step } = self.cache.place(index);
        // At once where no gaps are between them.
        let pieces = if pieces * step == values.cols() { 1 } else { pieces };
        let rows = &self.placement.inputs.rows;
        for piece in 0..pieces {
            let width = values.cols() / pieces;
            let mut to = self.rows.columns(start + piece * step, width);
            append::write(&values.columns(piece * width, width), rows, &mut to, self.scales());
        }
    }

    /// The scales of a cache in 8 bits: see [`fp8::Rows`].
    pub(crate) fn scales(&self) -> Option<&Tensor> {
        self.scales.as_ref()
    }

    /// The rows of `count` neighbouring planes from `index` on, of all pages: planes of one piece.
    pub(crate) fn planes(&self, index: usize, count: usize) -> Tensor {
        let planes = &self.cache.layout().planes()[index..index + count];
        self.rows.columns(self.cache.place(index).start, planes.iter().map(|plane| plane.width).sum())
    }

    /// The rows of plane `index` with all of its pieces, of all pages; columns from one piece to the next.
    pub(crate) fn pieces(&self, index: usize) -> (Tensor, usize) {
        let Place { start, pieces, step } = self.cache.place(index);
        (self.rows.columns(start, pieces * step), step)
    }
}
