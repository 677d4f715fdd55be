//! Which queries are worked on together, and which keys they see.
//!
//! A *column* is one query of one query head. Columns that share a kv head share every key that is loaded, so a task
//! takes a [`Chunk`] of them, and a matrix product takes a [`Block`] of at most [`COLUMNS`]. Keys come in blocks of
//! [`KEYS`]. Scores are laid out keys down, columns across: softmax then runs along the vectors' lanes.

use super::{scratch::padded, tile::Trim};
use std::ops::Range;

/// Columns of a block at most.
pub(super) const COLUMNS: usize = 64;
/// Keys of a block at most.
pub(super) const KEYS: usize = 64;

/// `keys` in blocks that end at multiples of [`KEYS`], where pages end too. None when there are no keys.
#[inline(always)]
pub(super) fn key_blocks(keys: &Range<usize>) -> impl Iterator<Item = Range<usize>> + Clone + use<> {
    let keys = keys.clone();
    (keys.start / KEYS * KEYS..keys.end)
        .step_by(KEYS)
        .map(move |start| start.max(keys.start)..(start + KEYS).min(keys.end))
}

/// Columns of one kv head that one task works on: some query heads at some queries.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    /// Query heads, all of one kv head.
    pub(super) heads: Range<usize>,
    /// Queries of one batch row.
    pub(super) queries: Range<usize>,
}

/// At most [`COLUMNS`] columns of a chunk, head by head.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) heads: Range<usize>,
    pub(super) queries: Range<usize>,
}

impl Chunk {
    /// Splits `heads` x `queries` columns, late queries (which see most keys) first. A column takes about `widths`
    /// floats, and a chunk's working set is meant for the second-level cache.
    pub(super) fn split(heads: Range<usize>, queries: usize, widths: usize) -> Vec<Self> {
        const FLOATS: usize = 128 * 1024;
        let columns = (FLOATS / widths.max(1) / COLUMNS * COLUMNS).clamp(COLUMNS, 512);
        // A block of one head where sequences are long, of several where they are short.
        let block_queries = queries.clamp(1, COLUMNS);
        let chunk_heads = (columns / block_queries).clamp(1, heads.len());
        let chunk_queries = (columns / chunk_heads / COLUMNS).max(1) * COLUMNS;
        let mut chunks = Vec::new();
        for start in (0..queries).step_by(chunk_queries).rev() {
            for head in heads.clone().step_by(chunk_heads) {
                chunks.push(Self {
                    heads: head..(head + chunk_heads).min(heads.end),
                    queries: start..(start + chunk_queries).min(queries),
                });
            }
        }
        chunks
    }

    /// The same chunk of the `group` query heads of `kv_head`, when this one is of kv head 0.
    pub(super) fn of_kv_head(&self, kv_head: usize, group: usize) -> Self {
        let first = kv_head * group;
        Self { heads: first + self.heads.start..first + self.heads.end, queries: self.queries.clone() }
    }

    /// The blocks, which together are the chunk.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Block> + Clone {
        let heads = self.heads.clone();
        self.queries.clone().step_by(COLUMNS).flat_map({
            let end = self.queries.end;
            move |start| {
                let queries = start..(start + COLUMNS).min(end);
                let step = COLUMNS / queries.len();
                let heads = heads.clone();
                heads.clone().step_by(step).map(move |head| Block {
                    heads: head..(head + step).min(heads.end),
                    queries: queries.clone(),
                })
            }
        })
    }
}

/// The blocks of a chunk that have met a key, so that their sums have begun.
#[derive(Default)]
pub(super) struct Begun(u64);

impl Begun {
    /// Marks block `index`; tells whether it was marked.
    #[inline(always)]
    pub(super) fn mark(&mut self, index: usize) -> bool {
        let before = self.has(index);
        self.0 |= 1 << index;
        before
    }

    #[inline(always)]
    pub(super) fn has(&self, index: usize) -> bool {
        self.0 >> index & 1 == 1
    }
}

impl Block {
    /// Number of columns.
    pub(super) fn len(&self) -> usize {
        self.heads.len() * self.queries.len()
    }

    /// Number of columns, rounded up to whole lines.
    pub(super) fn padded(&self) -> usize {
        padded(self.len())
    }

    /// (head, query) of every column.
    pub(super) fn columns(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.heads.clone().flat_map(|head| self.queries.clone().map(move |query| (head, query)))
    }
}

/// What decides which keys a query sees and how far away they look.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    /// Position of query 0.
    pub(super) past: usize,
    /// ALiBi slope of every query head, times log2(e).
    pub(super) slopes: Option<&'a [f32]>,
    /// First key every query sees.
    pub(super) starts: Option<&'a [u32]>,
}

/// Per column, what masks and biases its scores. Padding columns see nothing.
pub(super) struct Columns {
    pub(super) position: [f32; COLUMNS],
    pub(super) first: [f32; COLUMNS],
    pub(super) slope: [f32; COLUMNS],
}

impl View<'_> {
    /// Keys that any of `queries` sees.
    pub(super) fn keys(&self, queries: &Range<usize>) -> Range<usize> {
        let first = self
            .starts
            .map_or(0, |starts| starts[queries.clone()].iter().copied().min().unwrap_or(0) as usize);
        first..self.past + queries.end
    }

    /// Whether any column of `block` sees any of `keys`.
    pub(super) fn sees(&self, block: &Block, keys: &Range<usize>) -> bool {
        let seen = self.keys(&block.queries);
        keys.start < seen.end && seen.start < keys.end
    }

    /// What hides some of `keys` from some columns of `block`, or biases their scores; none where all see all as it is.
    pub(super) fn mask(&self, block: &Block, keys: &Range<usize>) -> Option<Columns> {
        let queries = block.queries.clone();
        let before_all = keys.end <= self.past + queries.start + 1;
        let in_document = self
            .starts
            .is_none_or(|starts| starts[queries].iter().all(|start| *start as usize <= keys.start));
        (!before_all || !in_document || self.slopes.is_some()).then(|| self.columns(block))
    }

    fn columns(&self, block: &Block) -> Columns {
        let mut columns = Columns { position: [-1.0; COLUMNS], first: [0.0; COLUMNS], slope: [0.0; COLUMNS] };
        for (c, (head, query)) in block.columns().enumerate() {
            columns.position[c] = (self.past + query) as f32;
            columns.first[c] = self.starts.map_or(0.0, |starts| starts[query] as f32);
            columns.slope[c] = self.slopes.map_or(0.0, |slopes| slopes[head]);
        }
        columns
    }

    /// Makes the trim for `block` and the block of keys that starts at `key`. Only consecutive queries of one head can
    /// be trimmed.
    pub(super) fn trim(&self, block: &Block, key: usize, make: impl Fn(isize) -> Trim) -> Trim {
        if block.heads.len() > 1 {
            return Trim::None;
        }
        make((self.past + block.queries.start) as isize - key as isize)
    }
}
