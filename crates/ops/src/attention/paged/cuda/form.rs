//! The forms of the kernel, which of them serves what, and how queries make its row blocks.

use super::{
    super::{Shape, plan::Tiles},
    KERNELS,
};
use crate::{
    cuda::{Launch, clusters_at_once},
    fp8,
};
use keyfold_core::SCALE_BLOCK;
use keyfold_tensor::cuda::Gpu;
use std::sync::atomic::{AtomicBool, Ordering};

/// Elements of a tile's row and its bytes, rows of a row block.
pub(super) const COLUMN: usize = 64;
pub(super) const ROW_BYTES: usize = 128;
pub(super) const ROWS: usize = 64;
const WARPGROUP: usize = 128;
/// A window that no sequence fills, whose sums with lengths are still whole numbers of 32 bits.
const NO_WINDOW: usize = 1 << 30;
/// Parts of a task that are joined quickly, and tiles that such a part may have instead of making more of them.
const GOOD_PARTS: usize = 16;
/// Channels of sums that are kept together: a slab in finish.cuh.
const SLAB: usize = 8;
/// Keys that a multiprocessor has, of all tasks, from which on what is multiplied as it lies there is faster: a form for that takes
/// longer before its first tile and after its last.
const MANY_KEYS: usize = 256;
/// Tokens of a page whose scales are copied as they lie: 16 bytes.
const LEAST_PAGE: usize = 16;
/// CTAs of a cluster at most.
const CLUSTER: usize = 16;
const SHORT: usize = 8;
/// Whether there may be clusters.
static CLUSTERS: AtomicBool = AtomicBool::new(true);

/// From now on each CTA has a share of its own, for tools that cannot follow what those of a cluster send each other.
pub(crate) fn without_clusters() {
    CLUSTERS.store(false, Ordering::Relaxed);
}

/// A form of the kernel: `Shape` in form.cuh.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) name: &'static str,
    pub(super) width: usize,
    pub(super) value_width: usize,
    /// Keys of a tile.
    pub(super) keys: usize,
    pub(super) shared: bool,
    pub(super) rotate: bool,
    pub(super) row_groups: usize,
    pub(super) value_groups: usize,
    /// Slots for tiles in 8 bits that are converted; none otherwise.
    pub(super) raw: usize,
    pub(super) factors: bool,
    /// Whether tiles in 8 bits are multiplied as they come.
    pub(super) direct: bool,
}

const fn form(
    name: &'static str,
    [width, value_width, keys]: [usize; 3],
    [shared, rotate]: [bool; 2],
    [row_groups, value_groups]: [usize; 2],
) -> Form {
    let (raw, factors, direct) = (0, false, false);
    Form { name, width, value_width, keys, shared, rotate, row_groups, value_groups, raw, factors, direct }
}

/// A form for a cache in 8 bits, which is converted.
const fn eight(
    name: &'static str,
    sizes: [usize; 3],
    flags: [bool; 2],
    value_groups: usize,
    raw: usize,
) -> Form {
    Form { raw, ..form(name, sizes, flags, [1, value_groups]) }
}

/// A form for a cache in 8 bits whose heads have 256 channels, and a scale each ([`fp8::sharing`]).
const fn direct(name: &'static str, shared: bool) -> Form {
    Form { direct: true, ..form(name, [256, 256, 128], [shared, false], [1, 2]) }
}

/// Tensor-product attention; `rows` of a tile.
const fn factors(name: &'static str, width: usize, rows: usize, row_groups: usize) -> Form {
    Form { factors: true, ..form(name, [width, width, rows], [false, false], [row_groups, 1]) }
}

/// Terms that a key of tensor-product attention may have.
const RANKS: [usize; 3] = [1, 2, 4];

/// As at the end of kernel.cu; of those that fit, the first is taken.
const FORMS: [Form; 24] = [
    form("paged_attention_64", [64, 64, 128], [false, false], [1, 1]),
    form("paged_attention_64_shared", [64, 64, 128], [true, false], [1, 1]),
    form("paged_attention_128", [128, 128, 128], [false, false], [1, 1]),
    form("paged_attention_128_shared", [128, 128, 128], [true, false], [1, 1]),
    form("paged_attention_128_rotate", [128, 128, 128], [true, true], [1, 1]),
    form("paged_attention_256", [256, 256, 64], [false, false], [1, 1]),
    form("paged_attention_256_shared", [256, 256, 64], [true, false], [1, 1]),
    form("paged_attention_256_rotate", [256, 256, 64], [true, true], [1, 1]),
    form("paged_attention_256_rows", [256, 256, 64], [false, false], [2, 1]),
    form("paged_attention_256_shared_rows", [256, 256, 64], [true, false], [2, 1]),
    form("paged_attention_576_shared", [576, 512, 64], [true, false], [1, 2]),
    direct("paged_attention_256_direct", false),
    direct("paged_attention_256_shared_direct", true),
    eight("paged_attention_128_fp8", [128, 128, 128], [false, false], 1, 5),
    eight("paged_attention_128_shared_fp8", [128, 128, 128], [true, false], 1, 5),
    eight("paged_attention_128_rotate_fp8", [128, 128, 128], [true, true], 1, 3),
    eight("paged_attention_256_fp8", [256, 256, 64], [false, false], 1, 4),
    eight("paged_attention_256_shared_fp8", [256, 256, 64], [true, false], 1, 4),
    eight("paged_attention_256_rotate_fp8", [256, 256, 64], [true, true], 1, 2),
    eight("paged_attention_576_shared_fp8", [576, 512, 32], [true, false], 2, 4),
    factors("paged_attention_64_factors", 64, 128, 1),
    factors("paged_attention_128_factors", 128, 64, 1),
    factors("paged_attention_64_factors_rows", 64, 64, 2),
    factors("paged_attention_128_factors_rows", 128, 64, 2),
];

/// Whether a kernel serves `shape` on `gpu`, with planes whose rows are `strides` elements apart.
pub(in crate::attention) fn serves(gpu: &Gpu, shape: &Shape, strides: &[usize]) -> bool {
    let unit = if shape.fp8 { SCALE_BLOCK } else { 8 };
    let even = [shape.width, shape.value_width].iter().all(|n| n.is_multiple_of(unit))
        && strides.iter().all(|n| n.is_multiple_of(8));
    let turns = !shape.rotate || shape.width.is_multiple_of(16);
    even && turns
        && RANKS.contains(&shape.rank())
        && shape.page.is_power_of_two()
        && gpu.capability().0 == 9
        && Form::of(shape, &Blocks::of(shape), 0).is_some()
}

impl Form {
    /// The form for `shape`, if there is one, where a multiprocessor has as many `keys`.
    ///
    /// Two row blocks in a CTA halve what comes out of the L2 cache. Values in planes of their own keep it less busy than
    /// memory with two row blocks, and then more CTAs are better; with more blocks it is what binds. Factors keep a warpgroup busy
    /// for half of the time that memory takes.
    pub(super) fn of(shape: &Shape, blocks: &Blocks, keys: usize) -> Option<&'static Self> {
        let sided = blocks.count > 2 || ((shape.shared || shape.factors.is_some()) && blocks.count > 1);
        let fits = |form: &&Self| {
            let suits = (shape.width, shape.value_width) == (form.width, form.value_width)
                && fp8::sharing(form.width) == form.width
                && shape.page >= LEAST_PAGE
                && keys >= MANY_KEYS;
            (form.shared, form.rotate, form.eight_bits(), form.factors)
                == (shape.shared, shape.rotate, shape.fp8, shape.factors.is_some())
                && shape.width <= form.width
                && shape.value_width <= form.value_width
                && (!form.direct || suits)
        };
        let best = FORMS.iter().find(fits)?;
        let like = |form: &&Self| form.width == best.width && form.row_groups == 2;
        Some(FORMS.iter().filter(fits).find(like).filter(|_| sided).unwrap_or(best))
    }

    /// How many of `most` shares to make.
    ///
    /// Where keys and values are two planes, half of the multiprocessors keep memory busy, and nearly so many tasks of equal
    /// length are better not cut. Only on a grid of that size: idle CTAs of a larger one leave the wrong ones busy.
    pub(super) fn shares(&self, shape: &Shape, lengths: &[u32], most: usize, cluster: usize) -> usize {
        let tasks = lengths.len() * shape.kv_heads;
        let of = self.tiles(shape);
        let tiles = |length: &u32| of.count(*length);
        let equal = lengths.windows(2).all(|pair| tiles(&pair[0]) == tiles(&pair[1]));
        let enough = !self.shared && !self.eight_bits() && self.row_groups == 1 && tasks * 17 >= most * 8;
        let longest = lengths.iter().map(tiles).max().unwrap_or(1);
        match longest {
            _ if equal && enough => tasks.min(most),
            // Joining more parts takes longer than these tiles.
            longest if longest <= GOOD_PARTS * SHORT => most.min(GOOD_PARTS.div_ceil(cluster) * tasks.max(1)),
            _ => most,
        }
    }

    pub(super) fn tiles(&self, shape: &Shape) -> Tiles {
        Tiles { keys: self.keys / shape.rank(), reach: window(shape) + shape.tokens - 1 }
    }

    /// CTAs that have a share together, and how many such clusters run at a time.
    ///
    /// What a cluster's CTAs sum up they add in each other's shared memory, which takes less than half of the time that it takes
    /// through the L2 cache. As large as they can be while each task has one, so that few tasks are in parts of several clusters;
    /// not for so many tasks that each cluster would have several: that has to be done for each.
    pub(super) fn clusters(&self, gpu: &Gpu, tasks: usize) -> (usize, usize) {
        let all = gpu.multiprocessors();
        let allowed = if CLUSTERS.load(Ordering::Relaxed) { CLUSTER } else { 1 };
        let most = allowed.min(all / tasks.max(1));
        // Two planes of keys and values keep memory busy with a CTA for each of half as many tasks: see `shares`.
        let least = if self.shared || self.eight_bits() { 2 } else { 3 };
        let function = KERNELS.function(gpu, self.name);
        let bytes = self.bytes(function.shared_limit());
        let at_once = |cluster: usize| {
            let grid = Launch::blocks(cluster, self.threads() as u32).shared(bytes).cluster(cluster);
            clusters_at_once(gpu, function, grid)
        };
        // CTAs wait for those of other clusters: all must run at once.
        let sizes = (least..=most).rev().filter(|cluster| self.joins(*cluster, bytes));
        sizes
            .map(|cluster| (cluster, at_once(cluster)))
            .find(|(_, found)| *found >= tasks)
            .unwrap_or((1, all))
    }

    /// Whether parts of as many CTAs fit where `bytes` of shared memory leave room for tiles: `JOIN_BYTES` in form.cuh.
    fn joins(&self, cluster: usize, bytes: usize) -> bool {
        // Of rotated forms what lies behind the tiles is no room: rotated ones come between.
        let behind = match self.rotate {
            true => self.rotated() + self.raw_bytes(),
            false => self.weights(),
        };
        let tiles = bytes - self.row_groups * self.width * ROWS * 2 - self.kept() - behind;
        let slabs = self.value_width / self.value_groups / SLAB;
        let received = cluster * slabs.div_ceil(cluster) * SLAB * ROWS * 4;
        cluster <= slabs && received <= tiles / self.groups() / 1024 * 1024
    }

    /// Bytes of a slot for tiles, and of those for rotated ones.
    fn slot(&self) -> usize {
        let factors = if self.factors { self.row_groups * COLUMN } else { 0 };
        (self.width.max(self.value_width) + factors) * self.keys * if self.direct { 1 } else { 2 }
    }

    /// Bytes that are kept for barriers, and for weights that warpgroups exchange: `KEPT_BYTES` and `WEIGHT_BYTES` in form.cuh.
    fn kept(&self) -> usize {
        if self.direct { 3072 } else { 2048 }
    }

    fn weights(&self) -> usize {
        if self.direct { 2 * ROWS * self.keys * 2 } else { 0 }
    }

    fn eight_bits(&self) -> bool {
        self.direct || self.raw > 0
    }

    fn rotated(&self) -> usize {
        if self.rotate { 2 * self.slot() } else { 0 }
    }

    /// Of slots for tiles in 8 bits.
    fn raw_bytes(&self) -> usize {
        self.raw * self.width.max(self.value_width).next_multiple_of(ROW_BYTES) * self.keys
    }

    pub(super) fn groups(&self) -> usize {
        self.row_groups * self.value_groups
    }

    pub(super) fn threads(&self) -> usize {
        let others = self.rotate || (self.raw > 0 && self.groups() == 1);
        (self.groups() + 1 + usize::from(others)) * WARPGROUP
    }

    /// Shared memory of a CTA of which there are `most` bytes.
    pub(super) fn bytes(&self, most: usize) -> usize {
        let queries = self.row_groups * self.width * ROWS * 2;
        let fixed = queries + self.kept() + self.weights() + self.rotated() + self.raw_bytes();
        fixed + (most - fixed) / self.slot() * self.slot()
    }

    /// f32 values of a part of a row block.
    pub(super) fn part(&self) -> usize {
        ROWS * self.value_width
    }
}

pub(super) fn window(shape: &Shape) -> usize {
    shape.window.unwrap_or(NO_WINDOW).min(NO_WINDOW)
}

/// How the queries of a task make blocks of 64 rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    pub(super) count: usize,
    /// Blocks that one token's heads take.
    pub(super) heads: usize,
    /// Tokens of a block.
    pub(super) tokens: usize,
}

impl Blocks {
    pub(super) fn of(shape: &Shape) -> Self {
        let group = shape.heads / shape.kv_heads;
        let heads = group.div_ceil(ROWS);
        // Factors are read for eight neighbouring heads at a time.
        let alone = shape.factors.is_some() && !group.is_multiple_of(8);
        let tokens = if alone { 1 } else { (ROWS / group).clamp(1, shape.tokens) };
        Self { count: heads * shape.tokens.div_ceil(tokens), heads, tokens }
    }
}
