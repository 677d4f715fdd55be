//! Launches of `kernel.cu` and `plan.cuh`.

use super::{
    Cache, Shape,
    plan::{Plan, Tiles},
};
use crate::{
    attention::Heads,
    cuda::{Boxes, Launch, Module, boxes, check, gpu_of, launch, module, unsupported},
    fp8,
    indices::Indices,
};
use keyfold_core::{DType, SCALE_BLOCK};
use keyfold_tensor::{Arena, Device, Tensor, cuda::Gpu};
use std::sync::atomic::{AtomicBool, Ordering};

static KERNELS: Module = module!("attention_paged");

/// Elements of a tile's row and its bytes, rows of a row block, bytes of shared memory that a kernel keeps for barriers.
const COLUMN: usize = 64;
const ROW_BYTES: usize = 128;
const ROWS: usize = 64;
const BARRIERS: usize = 1536;
const WARPGROUP: usize = 128;
/// A window that no sequence fills, whose sums with lengths are still whole numbers of 32 bits.
const NO_WINDOW: usize = 1 << 30;
const PLANNERS: u32 = 1024;
/// Parts of a task that are joined quickly, and tiles that such a part may have instead of making more of them.
const GOOD_PARTS: usize = 16;
const SHORT: usize = 8;

/// A form of the kernel: `Shape` in types.cuh.
#[derive(Clone, Copy, Debug)]
struct Form {
    name: &'static str,
    width: usize,
    value_width: usize,
    /// Keys of a tile.
    keys: usize,
    shared: bool,
    rotate: bool,
    row_groups: usize,
    value_groups: usize,
    /// Slots for tiles in 8 bits; none where the cache is bf16.
    raw: usize,
    factors: bool,
}

const fn form(
    name: &'static str,
    [width, value_width, keys]: [usize; 3],
    [shared, rotate]: [bool; 2],
    [row_groups, value_groups]: [usize; 2],
) -> Form {
    let (raw, factors) = (0, false);
    Form { name, width, value_width, keys, shared, rotate, row_groups, value_groups, raw, factors }
}

/// A form for a cache in 8 bits.
const fn eight(
    name: &'static str,
    sizes: [usize; 3],
    flags: [bool; 2],
    value_groups: usize,
    raw: usize,
) -> Form {
    Form { raw, ..form(name, sizes, flags, [1, value_groups]) }
}

/// Tensor-product attention; `rows` of a tile.
const fn factors(name: &'static str, width: usize, rows: usize) -> Form {
    Form { factors: true, ..form(name, [width, width, rows], [false, false], [1, 1]) }
}

/// Terms that a key of tensor-product attention may have.
const RANKS: [usize; 3] = [1, 2, 4];

/// As at the end of kernel.cu; of those that fit, the first is taken.
const FORMS: [Form; 20] = [
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
    eight("paged_attention_128_fp8", [128, 128, 128], [false, false], 1, 5),
    eight("paged_attention_128_shared_fp8", [128, 128, 128], [true, false], 1, 5),
    eight("paged_attention_128_rotate_fp8", [128, 128, 128], [true, true], 1, 3),
    eight("paged_attention_256_fp8", [256, 256, 64], [false, false], 1, 4),
    eight("paged_attention_256_shared_fp8", [256, 256, 64], [true, false], 1, 4),
    eight("paged_attention_256_rotate_fp8", [256, 256, 64], [true, true], 1, 2),
    eight("paged_attention_576_shared_fp8", [576, 512, 32], [true, false], 2, 4),
    factors("paged_attention_64_factors", 64, 128),
    factors("paged_attention_128_factors", 128, 64),
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
        && Form::of(shape, &Blocks::of(shape)).is_some()
}

impl Form {
    /// The form for `shape`, if there is one.
    ///
    /// Two row blocks in a CTA halve what comes out of the L2 cache. Values in planes of their own keep it less busy than
    /// memory with two row blocks, and then more CTAs are better; with more blocks it is what binds.
    fn of(shape: &Shape, blocks: &Blocks) -> Option<&'static Self> {
        let sided = blocks.count > 2 || (shape.shared && blocks.count > 1);
        let fits = |form: &&Self| {
            (form.shared, form.rotate, form.raw > 0, form.factors)
                == (shape.shared, shape.rotate, shape.fp8, shape.factors.is_some())
                && shape.width <= form.width
                && shape.value_width <= form.value_width
        };
        let best = FORMS.iter().find(fits)?;
        let like = |form: &&Self| form.width == best.width && form.row_groups == 2;
        Some(FORMS.iter().filter(fits).find(like).filter(|_| sided).unwrap_or(best))
    }

    /// How many of `most` shares to make.
    ///
    /// Where keys and values are two planes, half of the multiprocessors keep memory busy, and nearly so many tasks of equal
    /// length are better not cut. Only on a grid of that size: idle CTAs of a larger one leave the wrong ones busy.
    fn shares(&self, shape: &Shape, lengths: &[u32], most: usize) -> usize {
        let tasks = lengths.len() * shape.kv_heads;
        let of = self.tiles(shape);
        let tiles = |length: &u32| of.count(*length);
        let equal = lengths.windows(2).all(|pair| tiles(&pair[0]) == tiles(&pair[1]));
        let enough = !self.shared && self.raw == 0 && self.row_groups == 1 && tasks * 17 >= most * 8;
        let longest = lengths.iter().map(tiles).max().unwrap_or(1);
        match longest {
            _ if equal && enough => tasks.min(most),
            // Joining more parts takes longer than these tiles.
            longest if longest <= GOOD_PARTS * SHORT => most.min(GOOD_PARTS * tasks.max(1)),
            _ => most,
        }
    }

    fn tiles(&self, shape: &Shape) -> Tiles {
        Tiles { keys: self.keys / shape.rank(), reach: window(shape) + shape.tokens - 1 }
    }

    fn groups(&self) -> usize {
        self.row_groups * self.value_groups
    }

    fn threads(&self) -> usize {
        let others = self.rotate || (self.raw > 0 && self.groups() == 1);
        (self.groups() + 1 + usize::from(others)) * WARPGROUP
    }

    /// Shared memory of a CTA of which there are `most` bytes.
    fn bytes(&self, most: usize) -> usize {
        let widest = self.width.max(self.value_width);
        let slot = (widest + if self.factors { COLUMN } else { 0 }) * self.keys * 2;
        let raw = self.raw * widest.next_multiple_of(ROW_BYTES) * self.keys;
        let rotated = if self.rotate { 2 * slot } else { 0 };
        let fixed = self.row_groups * self.width * ROWS * 2 + BARRIERS + rotated + raw;
        fixed + (most - fixed) / slot * slot
    }

    /// f32 values of a part of a row block.
    fn part(&self) -> usize {
        ROWS * self.value_width
    }
}

fn window(shape: &Shape) -> usize {
    shape.window.unwrap_or(NO_WINDOW).min(NO_WINDOW)
}

/// How the queries of a task make blocks of 64 rows.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    count: usize,
    /// Blocks that one token's heads take.
    heads: usize,
    /// Tokens of a block.
    tokens: usize,
}

impl Blocks {
    fn of(shape: &Shape) -> Self {
        let group = shape.heads / shape.kv_heads;
        let heads = group.div_ceil(ROWS);
        // Factors are read for eight neighbouring heads at a time.
        let alone = shape.factors.is_some() && !group.is_multiple_of(8);
        let tokens = if alone { 1 } else { (ROWS / group).clamp(1, shape.tokens) };
        Self { count: heads * shape.tokens.div_ceil(tokens), heads, tokens }
    }
}

/// What a batch keeps on a GPU.
#[derive(Debug)]
pub(super) struct Batch {
    form: &'static Form,
    blocks: Blocks,
    gpu: usize,
    sequences: usize,
    /// Of all page tables.
    entries: usize,
    /// CTAs side by side for the row blocks of a task; each such column takes all shares.
    columns: usize,
    shares: usize,
    lengths: Tensor,
    tables: Tensor,
    /// As `Plan` in plan.cuh: shares, items, cuts, counters.
    plan: Tensor,
    parts: Tensor,
    sums: Tensor,
    /// Whether nothing ran since the plan was made.
    planned: AtomicBool,
}

/// Words of memory: all that is not bf16 is kept in tensors of this type.
fn words(arena: &Arena, count: usize) -> Tensor {
    arena.tensor(1, count.max(1), DType::F32)
}

fn upload(to: &mut Tensor, values: &[u32]) {
    let mut bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    bytes.resize(4 * to.len(), 0);
    to.write_bytes(&bytes);
}

/// `Plan` in plan.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct PagedPlan {
    lengths: u64,
    shares: u64,
    items: u64,
    cuts: u64,
    written: u64,
    counters: i32,
    sequences: i32,
    kv_heads: i32,
    count: i32,
    keys: i32,
    reach: i32,
}

impl Batch {
    /// None on the host.
    pub(super) fn new(arena: &Arena, shape: &Shape, lengths: &[u32], entries: usize) -> Option<Self> {
        let Device::Cuda(index) = arena.device() else { return None };
        let gpu = keyfold_tensor::cuda::gpu(index).unwrap_or_else(|error| error.raise());
        let blocks = Blocks::of(shape);
        let Some(form) = Form::of(shape, &blocks).filter(|_| gpu.capability().0 == 9) else {
            unsupported(
                gpu,
                format!("paged attention of {shape:?} (kernels are for Hopper: compute capability 9.0)"),
            )
        };
        let columns = blocks.count.div_ceil(form.row_groups);
        let sequences = lengths.len();
        let tasks = sequences * shape.kv_heads;
        let shares = form.shares(shape, lengths, (gpu.multiprocessors() / columns).max(1));
        let groups = blocks.count * form.value_groups;
        let parts = Plan::slots(shares) * blocks.count;
        Some(Self {
            form,
            blocks,
            gpu: index,
            sequences,
            entries,
            columns,
            shares,
            lengths: words(arena, sequences),
            tables: words(arena, entries),
            plan: words(arena, 4 * (2 * shares + tasks + shares + shares) + shares * groups),
            parts: words(arena, parts * form.part()),
            sums: words(arena, parts * form.value_groups * ROWS * 2),
            planned: AtomicBool::new(true),
        })
    }

    fn layout(&self, shape: &Shape) -> PagedPlan {
        let tiles = self.form.tiles(shape);
        let tasks = self.sequences * shape.kv_heads;
        let shares = self.plan.address();
        let items = shares + 16 * 2 * self.shares as u64;
        let cuts = items + 16 * (tasks + self.shares) as u64;
        PagedPlan {
            lengths: self.lengths.address(),
            shares,
            items,
            cuts,
            written: cuts + 16 * self.shares as u64,
            counters: (self.shares * self.blocks.count * self.form.value_groups) as i32,
            sequences: self.sequences as i32,
            kv_heads: shape.kv_heads as i32,
            count: self.shares as i32,
            keys: tiles.keys as i32,
            reach: tiles.reach as i32,
        }
    }

    /// Uploads what may have changed and plans anew.
    pub(super) fn update(&mut self, shape: &Shape, lengths: &[u32], tables: Option<&[u32]>) {
        upload(&mut self.lengths, lengths);
        if let Some(tables) = tables {
            upload(&mut self.tables, tables);
        }
        self.plan(shape);
    }

    /// See [`super::Batch::advance`].
    pub(super) fn advance(&self, shape: &Shape, positions: &Indices, rows: &Indices) {
        let gpu = gpu_of(&self.plan);
        let most = self.entries / self.sequences.max(1);
        launch!(gpu, KERNELS, "paged_advance", Launch::blocks(self.sequences.div_ceil(128), 128);
            self.lengths.address(), self.tables.address(), positions.on(gpu), rows.on(gpu), self.sequences as i32,
            most as i32, shape.page.trailing_zeros() as i32);
    }

    /// Plans from the lengths that lie on the device.
    pub(super) fn plan(&self, shape: &Shape) {
        let gpu = gpu_of(&self.plan);
        self.planned.store(true, Ordering::Relaxed);
        launch!(gpu, KERNELS, "paged_plan", Launch::blocks(1, PLANNERS); self.layout(shape));
    }

    /// Whether the plan that lies on the device is the host's.
    pub(super) fn plans_alike(&self, shape: &Shape, lengths: &[u32]) -> bool {
        let bytes = self.plan.to_bytes();
        let words: Vec<[i32; 4]> = bytes
            .chunks_exact(16)
            .map(|four| {
                std::array::from_fn(|i| {
                    i32::from_ne_bytes([four[4 * i], four[4 * i + 1], four[4 * i + 2], four[4 * i + 3]])
                })
            })
            .collect();
        let tasks = self.sequences * shape.kv_heads;
        let (shares, rest) = words.split_at(2 * self.shares);
        let (items, cuts) = rest.split_at(tasks + self.shares);
        let plan = Plan::new(lengths, shape.kv_heads, self.shares, self.form.tiles(shape));
        let item = |number: usize| {
            let item = plan.items[number];
            [item.task as i32, item.first as i32, item.end as i32, item.cut.map_or(-1, |cut| cut as i32)]
        };
        let mut alike = (0..plan.items.len()).all(|number| items[number] == item(number));
        for (share, range) in plan.shares.iter().enumerate() {
            let [begin, end, ..] = shares[2 * share + 1];
            alike &= match range.is_empty() {
                true => begin == end,
                false => (begin as usize..end as usize) == *range && shares[2 * share] == item(range.start),
            };
        }
        for (cut, found) in plan.cuts.iter().zip(cuts) {
            alike &= *found == [cut.task, cut.slot, cut.parts, cut.share].map(|x| x as i32);
        }
        alike
    }
}

/// `Params` in types.cuh.
#[repr(C)]
struct PagedParams {
    page_table: u64,
    lengths: u64,
    shares: u64,
    items: u64,
    cuts: u64,
    written: u64,
    cosines: u64,
    sines: u64,
    scales: u64,
    scale_stride: i64,
    out: u64,
    lse: u64,
    slopes: u64,
    part_out: u64,
    part_sums: u64,
    max_pages: i32,
    page_shift: i32,
    pages: i32,
    tokens: i32,
    heads: i32,
    kv_heads: i32,
    group: i32,
    group_inverse: f32,
    row_blocks: i32,
    head_blocks: i32,
    block_tokens: i32,
    value_width: i32,
    pairs: i32,
    positions: i32,
    scale: f32,
    out_f32: i32,
    first_key_block: i32,
    first_value_block: i32,
    key_blocks: i32,
    value_blocks: i32,
    key_step: i32,
    value_step: i32,
    window: i32,
    rank_shift: i32,
}

/// A plane for the copy engine: channels, heads, tokens of a page, pages; boxes of 64 channels of the `keys` of a tile, of one
/// head or, where heads are the terms of a key, of all.
fn plane(gpu: &Gpu, name: &str, heads: Heads<'_>, shape: &Shape, keys: usize) -> Boxes {
    let page = shape.page;
    let Heads { tensor, count, width, stride } = heads;
    // A single head's stride is never walked, but must be one that the copy engine accepts.
    let stride = if count == 1 { tensor.stride() } else { stride };
    boxes(
        gpu,
        &format!("paged attention: {name}"),
        tensor.dtype(),
        tensor.address(),
        [width, count, page, tensor.rows() / page],
        &[stride, tensor.stride(), tensor.stride() * page],
        [ROW_BYTES / tensor.dtype().bytes(), shape.rank(), page.min(keys), 1],
    )
}

/// See [`super::attend`].
pub(super) fn attend(
    q: &Tensor,
    cache: &Cache<'_>,
    batch: &super::Batch,
    out: &Tensor,
    lse: Option<&mut Tensor>,
) {
    let gpu = gpu_of(q);
    let shape = &batch.shape;
    let Some(device) = batch.device.as_ref().filter(|device| device.gpu == gpu.index()) else {
        unsupported(gpu, "paged attention with a batch made for another device")
    };
    let stored = if shape.fp8 { DType::Fp8 } else { DType::Bf16 };
    check("paged attention", gpu, DType::Bf16, &[("q", q)]);
    check("paged attention", gpu, stored, &[("k", cache.k.tensor)]);
    check("paged attention", gpu, out.dtype(), &[("out", out)]);
    assert!(out.is_contiguous(), "paged attention: out has gaps between its rows");
    if let Some(lse) = &lse {
        check("paged attention", gpu, DType::F32, &[("lse", lse)]);
        assert!(lse.is_contiguous(), "paged attention: lse has gaps between its rows");
    }
    assert!(
        shape.value_width.is_multiple_of(2),
        "paged attention: values of {} channels, an even number was expected",
        shape.value_width
    );
    if let Some(slopes) = cache.alibi {
        check("paged attention", gpu, DType::F32, &[("alibi", slopes)]);
    }
    let Batch { form, blocks, .. } = device;
    let group = shape.heads / shape.kv_heads;
    let tokens = device.sequences * shape.tokens;
    let queries = boxes(
        gpu,
        "paged attention: q",
        DType::Bf16,
        q.address(),
        [shape.width, shape.heads, tokens],
        &[shape.width, q.stride()],
        [COLUMN, group.min(ROWS), blocks.tokens],
    );
    let tile_keys = form.tiles(shape).keys;
    let keys = plane(gpu, "k", cache.k, shape, tile_keys);
    let values = match cache.v {
        Some(v) => {
            check("paged attention", gpu, stored, &[("v", v.tensor)]);
            plane(gpu, "v", v, shape, tile_keys)
        }
        None => keys,
    };
    let [k_factors, v_factors] = match cache.factors {
        Some([a_k, a_v]) => {
            check("paged attention", gpu, DType::Bf16, &[("a_k", a_k.tensor), ("a_v", a_v.tensor)]);
            [("a_k", a_k), ("a_v", a_v)].map(|(name, factors)| plane(gpu, name, factors, shape, tile_keys))
        }
        None => [keys; 2],
    };
    let angles = cache.rotate.map(|table| {
        assert!(
            shape.width.is_multiple_of(16),
            "paged attention: keys of {} channels to rotate, a multiple of 16 was expected",
            shape.width
        );
        (table.on(gpu), table.positions())
    });
    let (cosines, positions) =
        angles.as_ref().map_or((0, 0), |(table, positions)| (table.address(), *positions));
    let layout = device.layout(shape);
    let block = |heads: Heads<'_>| {
        cache.scales.map_or(0, |scales| fp8::Rows { values: heads.tensor, scales }.block()) as i32
    };
    let value_heads = cache.v.unwrap_or(cache.k);
    let params = PagedParams {
        page_table: device.tables.address(),
        lengths: layout.lengths,
        shares: layout.shares,
        items: layout.items,
        cuts: layout.cuts,
        written: layout.written,
        cosines,
        sines: cosines + (positions * shape.width / 2 * 4) as u64,
        scales: cache.scales.map_or(0, |scales| scales.address()),
        scale_stride: cache.scales.map_or(0, |scales| scales.stride() as i64),
        out: out.address(),
        lse: lse.map_or(0, |lse| lse.address()),
        slopes: cache.alibi.map_or(0, Tensor::address),
        part_out: device.parts.address(),
        part_sums: device.sums.address(),
        max_pages: (batch.tables.len() / device.sequences) as i32,
        page_shift: shape.page.trailing_zeros() as i32,
        pages: (cache.k.tensor.rows() / shape.page) as i32,
        tokens: shape.tokens as i32,
        heads: shape.heads as i32,
        kv_heads: shape.kv_heads as i32,
        group: group as i32,
        group_inverse: 1.0 / group as f32,
        row_blocks: blocks.count as i32,
        head_blocks: blocks.heads as i32,
        block_tokens: blocks.tokens as i32,
        value_width: shape.value_width as i32,
        pairs: (shape.width / 2) as i32,
        positions: positions as i32,
        scale: cache.scale * std::f32::consts::LOG2_E / shape.rank() as f32,
        out_f32: i32::from(out.dtype() == DType::F32),
        first_key_block: block(cache.k),
        first_value_block: block(value_heads),
        key_blocks: (shape.width / SCALE_BLOCK) as i32,
        value_blocks: (shape.value_width / SCALE_BLOCK) as i32,
        key_step: (cache.k.stride / SCALE_BLOCK) as i32,
        value_step: (value_heads.stride / SCALE_BLOCK) as i32,
        window: window(shape) as i32,
        rank_shift: shape.rank().trailing_zeros() as i32,
    };
    let function = KERNELS.function(gpu, form.name);
    let bytes = form.bytes(function.shared_limit());
    let grid = Launch::blocks(device.shares * device.columns, form.threads() as u32).shared(bytes);
    // What the plan says is read without waiting for the kernel before: not when that is the one that plans.
    let early = !device.planned.swap(false, Ordering::Relaxed);
    let grid = Launch { early, ..grid };
    match form.factors {
        false => launch!(gpu, KERNELS, form.name, grid; queries, keys, values, params),
        true => launch!(gpu, KERNELS, form.name, grid; queries, keys, values, params, k_factors, v_factors),
    }
}
