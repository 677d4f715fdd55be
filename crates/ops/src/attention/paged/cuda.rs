//! Launches of `kernel.cu` and `plan.cuh`.

mod batch;
mod form;

pub(super) use batch::Batch;
pub(in crate::attention) use form::serves;
pub(crate) use form::without_clusters;

use super::{Cache, Shape};
use crate::{
    attention::Heads,
    cuda::{Boxes, Launch, Module, boxes, check, gpu_of, launch, module, unsupported},
    fp8,
};
use form::{COLUMN, ROW_BYTES, ROWS, window};
use keyfold_core::{DType, SCALE_BLOCK};
use keyfold_tensor::{Tensor, cuda::Gpu};
use std::sync::atomic::Ordering;

static KERNELS: Module = module!("attention_paged");

/// `Params` in params.cuh.
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
    cluster: i32,
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
    if let Some(scales) = cache.scales.filter(|_| form.direct) {
        // Those of a page are copied as they lie.
        assert!(
            scales.stride().is_multiple_of(16) && scales.address().is_multiple_of(16),
            "paged attention: a cache in 8 bits of {} rows, whole pages were expected",
            scales.stride()
        );
    }
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
        cluster: device.cluster as i32,
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
    let ctas = device.shares * device.columns * device.cluster;
    let grid = Launch::blocks(ctas, form.threads() as u32).shared(bytes).cluster(device.cluster);
    // What the plan says is read without waiting for the kernel before: not when that is the one that plans.
    let early = !device.planned.swap(false, Ordering::Relaxed);
    let grid = Launch { early, ..grid };
    match form.factors {
        false => launch!(gpu, KERNELS, form.name, grid; queries, keys, values, params),
        true => launch!(gpu, KERNELS, form.name, grid; queries, keys, values, params, k_factors, v_factors),
    }
}
