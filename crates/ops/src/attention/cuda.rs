//! Launches of `forward.cu` and `backward.cu`.
//!
//! The kernels read and write bf16 whose heads begin at multiples of 16 bytes. What lies otherwise, or is f32, is copied
//! into such a form first and back afterwards; a model's own tensors are not.

use super::{Gradient, Heads, Shape};
use crate::{
    add, cast,
    cuda::{
        Boxes, Launch, Module, arena, boxes, check, gpu_of, launch, module, scratch, unsupported,
        uploaded_f32, uploaded_u32,
    },
};
use keyfold_core::DType;
use keyfold_tensor::{Tensor, cuda::Gpu};

static FORWARD_KERNELS: Module = module!("attention_forward");
static BACKWARD_KERNELS: Module = module!("attention_backward");
static FORWARD_HOPPER_KERNELS: Module = module!("attention_forward_hopper");
static BACKWARD_HOPPER_KERNELS: Module = module!("attention_backward_hopper");
static BACKWARD_WIDE_KERNELS: Module = module!("attention_backward_wide");

/// A forward kernel: widths of keys and values it is made for, its name, queries and threads of a block.
const FORWARD: [(usize, usize, &str, usize, u32); 6] = [
    (64, 64, "forward_64_64", 128, 128),
    (128, 64, "forward_128_64", 128, 128),
    (128, 128, "forward_128_128", 128, 128),
    (192, 128, "forward_192_128", 128, 256),
    (192, 192, "forward_192_192", 128, 256),
    (256, 256, "forward_256_256", 128, 256),
];
/// Keys of a block of the forward kernels.
const FORWARD_KEYS: usize = 64;
/// As [`FORWARD`], with the keys of a block, for Hopper's own matrix unit and copy engine.
const FORWARD_HOPPER: [(usize, usize, &str, usize); 6] = [
    (64, 64, "forward_64_64", 128),
    (128, 64, "forward_128_64", 128),
    (128, 128, "forward_128_128", 128),
    (192, 128, "forward_192_128", 128),
    (192, 192, "forward_192_192", 96),
    (256, 256, "forward_256_256", 80),
];
/// Queries and threads of a block of these.
const FORWARD_HOPPER_BLOCK: (usize, u32) = (128, 384);
/// As [`BACKWARD`], for Hopper.
const BACKWARD_HOPPER: [(usize, usize, &str, usize); 3] =
    [(64, 64, "backward_64_64", 128), (128, 64, "backward_128_64", 128), (128, 128, "backward_128_128", 128)];
/// As [`BACKWARD`], for wider heads on Hopper.
const BACKWARD_WIDE: [(usize, usize, &str, usize); 3] = [
    (192, 128, "backward_192_128", 64),
    (192, 192, "backward_192_192", 64),
    (256, 256, "backward_256_256", 64),
];
/// Threads of a block of these two.
const BACKWARD_HOPPER_THREADS: u32 = 512;
/// Keys of their tiles.
const TILE_KEYS: usize = 64;
/// Bytes of shared memory for barriers.
const BARRIERS: usize = 128;

/// A backward kernel: widths of keys and values, its name, keys of a block.
const BACKWARD: [(usize, usize, &str, usize); 6] = [
    (64, 64, "backward_64_64", 128),
    (128, 64, "backward_128_64", 128),
    (128, 128, "backward_128_128", 128),
    (192, 128, "backward_192_128", 64),
    (192, 192, "backward_192_192", 64),
    (256, 256, "backward_256_256", 64),
];
/// Queries of a stage of the backward kernels, and tokens of an entry of `least`.
const QUERIES: usize = 64;
/// Query heads that a block of the backward kernels takes: with more, too much is at work at a time for the L2 cache, and the
/// blocks of the first keys, which have by far the most queries, are too long.
const HEADS_OF_A_PART: usize = 2;
/// Threads of a block of the backward kernels.
const THREADS: u32 = 256;

/// `Heads` of the kernels.
#[repr(C)]
#[derive(Clone, Copy)]
struct KernelHeads {
    data: u64,
    row: i64,
    head: i32,
    width: i32,
}

/// `Shape` of the kernels.
#[repr(C)]
#[derive(Clone, Copy)]
struct KernelShape {
    batch: i32,
    seq: i32,
    heads: i32,
    kv_heads: i32,
    past: i32,
    scale: f32,
    slopes: u64,
    starts: u64,
    least: u64,
}

/// `Inputs` of the backward kernels.
#[repr(C)]
struct Inputs {
    q: KernelHeads,
    k: KernelHeads,
    v: KernelHeads,
    d_out: KernelHeads,
    dk: KernelHeads,
    dv: KernelHeads,
    lse: u64,
    delta: u64,
    dq_sums: u64,
    dk_sums: u64,
    dv_sums: u64,
    dk_adds: i32,
    dv_adds: i32,
    parts: i32,
}

/// A shape and what of it lies on the device.
struct Uploaded {
    shape: KernelShape,
    _kept: Vec<Tensor>,
}

impl Uploaded {
    fn of(gpu: &Gpu, shape: &Shape<'_>, heads: usize, kv_heads: usize) -> Self {
        let mut kept = Vec::new();
        let mut keep = |tensor: Tensor| {
            let address = tensor.address();
            kept.push(tensor);
            address
        };
        let slopes = shape.alibi.map_or(0, |slopes| keep(uploaded_f32(gpu, slopes)));
        let (mut starts, mut least) = (0, 0);
        if let Some(given) = shape.doc_starts {
            let minima = |sequence: &[u32]| -> Vec<u32> {
                sequence.chunks(QUERIES).map(|part| part.iter().copied().min().unwrap_or(0)).collect()
            };
            let minima: Vec<u32> = given.chunks(shape.seq).flat_map(minima).collect();
            starts = keep(uploaded_u32(gpu, given));
            least = keep(uploaded_u32(gpu, &minima));
        }
        let shape = KernelShape {
            batch: shape.batch as i32,
            seq: shape.seq as i32,
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            past: 0,
            scale: shape.scale,
            slopes,
            starts,
            least,
        };
        Self { shape, _kept: kept }
    }
}

/// Heads in the form that the kernels take: the tensor itself, or a copy of it.
struct Ready {
    heads: KernelHeads,
    copy: Option<Tensor>,
}

impl Ready {
    /// A place for these heads, which holds their values if `filled`.
    fn of(gpu: &Gpu, heads: Heads<'_>, filled: bool) -> Self {
        let Heads { tensor, count, width, stride } = heads;
        let fits = tensor.dtype() == DType::Bf16
            && tensor.address().is_multiple_of(16)
            && [width, tensor.stride(), if count > 1 { stride } else { 0 }]
                .iter()
                .all(|n| n.is_multiple_of(8));
        if fits {
            let (data, row) = (tensor.address(), tensor.stride() as i64);
            return Self {
                heads: KernelHeads { data, row, head: stride as i32, width: width as i32 },
                copy: None,
            };
        }
        let wide = width.next_multiple_of(8);
        let mut copy = arena(gpu).tensor(tensor.rows(), count * wide, DType::Bf16);
        if filled {
            if wide != width {
                copy.fill_zero();
            }
            for head in 0..count {
                cast::copy(&tensor.columns(head * stride, width), &mut copy.columns(head * wide, width));
            }
        }
        let (data, row) = (copy.address(), copy.stride() as i64);
        Self { heads: KernelHeads { data, row, head: wide as i32, width: wide as i32 }, copy: Some(copy) }
    }

    /// Brings results to where they belong.
    fn finish(&self, gpu: &Gpu, heads: Heads<'_>, accumulate: bool) {
        let Some(copy) = &self.copy else { return };
        let wide = self.heads.width as usize;
        for head in 0..heads.count {
            let from = copy.columns(head * wide, heads.width);
            let mut to = heads.tensor.columns(head * heads.stride, heads.width);
            if accumulate {
                let mut same = arena(gpu).tensor(to.rows(), to.cols(), to.dtype());
                cast::copy(&from, &mut same);
                add::assign(&mut to, &same);
            } else {
                cast::copy(&from, &mut to);
            }
        }
    }
}

/// Boxes of 64 channels of `rows` tokens; `counts` of heads, tokens of a sequence, sequences.
fn head_boxes(gpu: &Gpu, name: &str, heads: KernelHeads, counts: [usize; 3], rows: usize) -> Boxes {
    let KernelHeads { data, row, head, width } = heads;
    let ([count, seq, batch], row) = (counts, row as usize);
    // A lone head's step is never walked, but must be one that the copy engine accepts.
    let head = if count > 1 { head as usize } else { row };
    boxes(
        gpu,
        name,
        DType::Bf16,
        data,
        [width as usize, count, seq, batch],
        &[head, row, row * seq],
        [64, 1, rows, 1],
    )
}

/// Whether the GPU has the instructions of `sm_90a`, which those after it lack.
fn is_hopper(gpu: &Gpu) -> bool {
    gpu.capability() == (9, 0)
}

fn none_so_wide(gpu: &Gpu, d: usize, e: usize) -> ! {
    unsupported(gpu, format!("attention with heads of {d} and values of {e} channels: 256 is the limit"))
}

/// Fails where a GPU has too little shared memory for a kernel.
fn check_shared(gpu: &Gpu, bytes: usize, width: usize) -> usize {
    if bytes > gpu.shared_memory() {
        let problem = format!(
            "training with heads of {width} channels needs {bytes} bytes of shared memory a block, it has {}",
            gpu.shared_memory()
        );
        unsupported(gpu, problem)
    }
    bytes
}

/// Whether [`forward`] has a kernel for keys of `width` and values of `value_width` channels.
pub(super) fn serves(width: usize, value_width: usize) -> bool {
    FORWARD.iter().any(|(d, e, ..)| *d >= width && *e >= value_width)
}

/// `past` keys of each sequence come before that of its first query; `shape.seq` counts queries.
pub(super) fn forward(
    q: Heads<'_>,
    k: Heads<'_>,
    v: Heads<'_>,
    shape: &Shape<'_>,
    past: usize,
    out: Heads<'_>,
    lse: &Tensor,
) {
    let gpu = gpu_of(q.tensor);
    check("attention", gpu, DType::F32, &[("lse", lse)]);
    let fits = |d: usize, e: usize| d >= q.width && e >= v.width;
    let hopper = FORWARD_HOPPER.iter().find(|(d, e, ..)| is_hopper(gpu) && fits(*d, *e));
    let Some(&(d, e, name, queries, threads)) = FORWARD.iter().find(|(d, e, ..)| fits(*d, *e)) else {
        none_so_wide(gpu, q.width, v.width)
    };
    let [q_at, k_at, v_at] = [q, k, v].map(|heads| Ready::of(gpu, heads, true));
    let out_at = Ready::of(gpu, out, false);
    let mut uploaded = Uploaded::of(gpu, shape, q.count, k.count);
    uploaded.shape.past = past as i32;
    let grid = |queries: usize, threads: u32, shared: usize| {
        let blocks = shape.batch * q.count * shape.seq.div_ceil(queries);
        Launch::blocks(blocks, threads).shared(check_shared(gpu, shared, q.width))
    };
    if let Some(&(d, e, name, keys)) = hopper {
        let (queries, threads) = FORWARD_HOPPER_BLOCK;
        // Queries, two stages of keys and values.
        let grid = grid(queries, threads, 2 * (queries * d + 2 * keys * (d + e)) + BARRIERS);
        let (batch, keys_of_seq) = (shape.batch, past + shape.seq);
        let q_map = head_boxes(gpu, "q", q_at.heads, [q.count, shape.seq, batch], queries);
        let k_map = head_boxes(gpu, "k", k_at.heads, [k.count, keys_of_seq, batch], keys);
        let v_map = head_boxes(gpu, "v", v_at.heads, [v.count, keys_of_seq, batch], keys);
        launch!(gpu, FORWARD_HOPPER_KERNELS, name, grid;
            out_at.heads, lse.address(), uploaded.shape, q_map, k_map, v_map);
    } else {
        // Queries, then outputs in their place, and one stage of keys and values.
        let grid = grid(queries, threads, 2 * (queries * d.max(e) + FORWARD_KEYS * (d + e)));
        launch!(gpu, FORWARD_KERNELS, name, grid;
            q_at.heads, k_at.heads, v_at.heads, out_at.heads, lse.address(), uploaded.shape);
    }
    out_at.finish(gpu, out, false);
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    q: Heads<'_>,
    k: Heads<'_>,
    v: Heads<'_>,
    out: Heads<'_>,
    d_out: Heads<'_>,
    lse: &Tensor,
    shape: &Shape<'_>,
    dq: Gradient<'_>,
    dk: Gradient<'_>,
    dv: Gradient<'_>,
) {
    let gpu = gpu_of(q.tensor);
    check("attention::backward", gpu, DType::F32, &[("lse", lse)]);
    let fits = |(d, e, ..): &&(usize, usize, &str, usize)| *d >= q.width && *e >= v.width;
    let on_hopper = |kernels: &'static [(usize, usize, &'static str, usize)]| {
        kernels.iter().find(|kernel| is_hopper(gpu) && fits(kernel))
    };
    let hopper = on_hopper(&BACKWARD_HOPPER);
    let wide = on_hopper(&BACKWARD_WIDE).filter(|_| hopper.is_none());
    let Some(&(d, e, name, keys)) = wide.or(hopper).or(BACKWARD.iter().find(fits)) else {
        none_so_wide(gpu, q.width, v.width)
    };
    let [q_at, k_at, v_at, out_at, d_out_at] = [q, k, v, out, d_out].map(|heads| Ready::of(gpu, heads, true));
    let [dq_at, dk_at, dv_at] = [dq, dk, dv].map(|gradient| Ready::of(gpu, gradient.heads, false));
    let adds = |ready: &Ready, gradient: Gradient<'_>| i32::from(gradient.accumulate && ready.copy.is_none());
    let uploaded = Uploaded::of(gpu, shape, q.count, k.count);
    let (batch, seq) = (shape.batch, shape.seq);
    let (batch_i, seq_i, heads_i, kv_i) = (batch as i32, seq as i32, q.count as i32, k.count as i32);

    let delta = scratch(gpu, batch * q.count, seq);
    launch!(gpu, BACKWARD_KERNELS, "delta", Launch::blocks((batch * seq * q.count).div_ceil(16), 256);
        out_at.heads, d_out_at.heads, delta.address(), batch_i, seq_i, heads_i);

    let parts = (q.count / k.count).div_ceil(HEADS_OF_A_PART);
    let zeros = |heads: usize, row_tiles: usize, columns: usize| {
        let mut sums = scratch(gpu, batch * heads * row_tiles, 16 * columns);
        sums.fill_zero();
        sums
    };
    let (query_tiles, key_tiles) = (QUERIES / 16 * seq.div_ceil(QUERIES), seq.div_ceil(16));
    let dq_sums = zeros(q.count, query_tiles, d);
    let kv_sums = (parts > 1).then(|| [zeros(k.count, key_tiles, d), zeros(k.count, key_tiles, e)]);
    let [dk_sums, dv_sums] = kv_sums.as_ref().map_or([0, 0], |sums| [sums[0].address(), sums[1].address()]);
    let inputs = Inputs {
        q: q_at.heads,
        k: k_at.heads,
        v: v_at.heads,
        d_out: d_out_at.heads,
        dk: dk_at.heads,
        dv: dv_at.heads,
        lse: lse.address(),
        delta: delta.address(),
        dq_sums: dq_sums.address(),
        dk_sums,
        dv_sums,
        dk_adds: adds(&dk_at, dk),
        dv_adds: adds(&dv_at, dv),
        parts: parts as i32,
    };
    let cluster = if wide.is_some() { 2 } else { 1 };
    let blocks = batch * k.count * parts * seq.div_ceil(cluster * keys) * cluster;
    // Bytes: a block's keys and values, a stage of queries and output gradients with their sums, a square of P^T or dS^T.
    let (own, stage, square) =
        (2 * keys * (d + e), 2 * QUERIES * (d + e) + 4 * 2 * QUERIES, 2 * keys * QUERIES);
    if hopper.is_none() && wide.is_none() {
        let grid =
            Launch::blocks(blocks, THREADS).shared(check_shared(gpu, own + 2 * stage + 2 * square, q.width));
        launch!(gpu, BACKWARD_KERNELS, name, grid; inputs, uploaded.shape);
    } else {
        let (of_queries, of_keys) = ([q.count, seq, batch], [k.count, seq, batch]);
        let q_map = head_boxes(gpu, "q", q_at.heads, of_queries, QUERIES);
        let k_map = head_boxes(gpu, "k", k_at.heads, of_keys, TILE_KEYS);
        let v_map = head_boxes(gpu, "v", v_at.heads, of_keys, TILE_KEYS);
        let d_out_map = head_boxes(gpu, "d_out", d_out_at.heads, of_queries, QUERIES);
        // Wide: two blocks a cluster, each with those channels of the other's keys of which it computes dQ: half of them, or all
        // where 64-channel parts make no halves. Otherwise three stages, and two of dS^T.
        let (kernels, shared) = if wide.is_some() {
            let kept = if d.is_multiple_of(128) { d / 2 } else { d };
            (&BACKWARD_WIDE_KERNELS, own + 2 * keys * kept + 2 * stage + 2 * square)
        } else {
            (&BACKWARD_HOPPER_KERNELS, own + 3 * stage + 2 * square)
        };
        let grid = Launch::blocks(blocks, BACKWARD_HOPPER_THREADS)
            .shared(check_shared(gpu, shared + BARRIERS, q.width))
            .cluster(cluster);
        launch!(gpu, kernels, name, grid; inputs, uploaded.shape, q_map, k_map, v_map, d_out_map);
    }

    let finish =
        |sums: u64, row_tiles: usize, columns: usize, factor: f32, to: &Ready, adds: i32, heads: i32| {
            let threads = batch * seq * heads as usize * (to.heads.width as usize / 8);
            launch!(gpu, BACKWARD_KERNELS, "finish", Launch::blocks(threads.div_ceil(256), 256);
            sums, row_tiles as i32, columns as i32, factor, to.heads, adds, batch_i, seq_i, heads);
        };
    finish(dq_sums.address(), query_tiles, d, shape.scale, &dq_at, adds(&dq_at, dq), heads_i);
    if parts > 1 {
        finish(dk_sums, key_tiles, d, shape.scale, &dk_at, adds(&dk_at, dk), kv_i);
        finish(dv_sums, key_tiles, e, 1.0, &dv_at, adds(&dv_at, dv), kv_i);
    }
    for (ready, gradient) in [(&dq_at, dq), (&dk_at, dk), (&dv_at, dv)] {
        ready.finish(gpu, gradient.heads, gradient.accumulate);
    }
}
