//! What a batch keeps on a GPU: page tables, lengths, the plan made of them there, and room for parts of outputs.

use super::{
    super::{Shape, plan::Plan},
    KERNELS,
    form::{Blocks, Form, ROWS},
};
use crate::{
    cuda::{Launch, gpu_of, launch, unsupported},
    indices::Indices,
};
use keyfold_core::DType;
use keyfold_tensor::{Arena, Device, Tensor};
use std::sync::atomic::{AtomicBool, Ordering};

const PLANNERS: u32 = 1024;
/// Warps of a warpgroup.
const WARPS: usize = 4;
/// `divide` in params.cuh takes numbers below this one.
const DIVIDED: usize = 1 << 21;

/// What a batch keeps on a GPU.
#[derive(Debug)]
pub(in super::super) struct Batch {
    pub(super) form: &'static Form,
    pub(super) blocks: Blocks,
    pub(super) gpu: usize,
    pub(super) sequences: usize,
    /// Of all page tables.
    pub(super) entries: usize,
    /// CTAs side by side for the row blocks of a task; each such column takes all shares.
    pub(super) columns: usize,
    pub(super) shares: usize,
    /// CTAs that have a share together.
    pub(super) cluster: usize,
    pub(super) lengths: Tensor,
    pub(super) tables: Tensor,
    /// As `Plan` in plan.cuh: shares, items, cuts, counters.
    pub(super) plan: Tensor,
    pub(super) parts: Tensor,
    pub(super) sums: Tensor,
    /// Whether nothing ran since the plan was made.
    pub(super) planned: AtomicBool,
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
pub(super) struct PagedPlan {
    pub(super) lengths: u64,
    pub(super) shares: u64,
    pub(super) items: u64,
    pub(super) cuts: u64,
    pub(super) written: u64,
    pub(super) counters: i32,
    pub(super) sequences: i32,
    pub(super) kv_heads: i32,
    pub(super) count: i32,
    pub(super) keys: i32,
    pub(super) reach: i32,
}

impl Batch {
    /// None on the host.
    pub(in super::super) fn new(
        arena: &Arena,
        shape: &Shape,
        lengths: &[u32],
        entries: usize,
    ) -> Option<Self> {
        let Device::Cuda(index) = arena.device() else { return None };
        let gpu = keyfold_tensor::cuda::gpu(index).unwrap_or_else(|error| error.raise());
        let blocks = Blocks::of(shape);
        let keys: usize = lengths.iter().map(|length| *length as usize).sum();
        let keys = keys * shape.kv_heads * blocks.count / gpu.multiprocessors();
        let Some(form) = Form::of(shape, &blocks, keys).filter(|_| gpu.capability().0 == 9) else {
            unsupported(
                gpu,
                format!("paged attention of {shape:?} (kernels are for Hopper: compute capability 9.0)"),
            )
        };
        let columns = blocks.count.div_ceil(form.row_groups);
        let sequences = lengths.len();
        let tasks = sequences * shape.kv_heads;
        let (cluster, most) = form.clusters(gpu, tasks * columns);
        let most = (most / columns).max(1);
        let shares = form.shares(shape, lengths, most, cluster);
        let tiles = lengths.iter().map(|length| form.tiles(shape).count(*length)).max().unwrap_or(1);
        assert!(
            tasks < DIVIDED && tiles * cluster < DIVIDED,
            "paged attention: {tasks} sequences times heads of up to {tiles} tiles, fewer than {DIVIDED} were expected"
        );
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
            cluster,
            lengths: words(arena, sequences),
            tables: words(arena, entries),
            plan: words(
                arena,
                4 * (2 * shares + tasks + shares + shares) + shares * groups * cluster * WARPS,
            ),
            parts: words(arena, parts * form.part()),
            sums: words(arena, parts * form.value_groups * cluster * ROWS * 2),
            planned: AtomicBool::new(true),
        })
    }

    pub(super) fn layout(&self, shape: &Shape) -> PagedPlan {
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
            counters: (self.shares * self.blocks.count * self.form.value_groups * self.cluster * WARPS)
                as i32,
            sequences: self.sequences as i32,
            kv_heads: shape.kv_heads as i32,
            count: self.shares as i32,
            keys: tiles.keys as i32,
            reach: tiles.reach as i32,
        }
    }

    /// Uploads what may have changed and plans anew.
    pub(in super::super) fn update(&mut self, shape: &Shape, lengths: &[u32], tables: Option<&[u32]>) {
        upload(&mut self.lengths, lengths);
        if let Some(tables) = tables {
            upload(&mut self.tables, tables);
        }
        self.plan(shape);
    }

    /// See [`super::Batch::advance`].
    pub(in super::super) fn advance(&self, shape: &Shape, positions: &Indices, rows: &Indices) {
        let gpu = gpu_of(&self.plan);
        let most = self.entries / self.sequences.max(1);
        launch!(gpu, KERNELS, "paged_advance", Launch::blocks(self.sequences.div_ceil(128), 128);
            self.lengths.address(), self.tables.address(), positions.on(gpu), rows.on(gpu), self.sequences as i32,
            most as i32, shape.page.trailing_zeros() as i32);
    }

    /// Plans from the lengths that lie on the device.
    pub(in super::super) fn plan(&self, shape: &Shape) {
        let gpu = gpu_of(&self.plan);
        self.planned.store(true, Ordering::Relaxed);
        launch!(gpu, KERNELS, "paged_plan", Launch::blocks(1, PLANNERS); self.layout(shape));
    }

    /// Whether the plan that lies on the device is the host's.
    pub(in super::super) fn plans_alike(&self, shape: &Shape, lengths: &[u32]) -> bool {
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
