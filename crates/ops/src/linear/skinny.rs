//! Launches of `skinny.cu`: products of up to 64 rows on Hopper.

use super::{
    Fused,
    product::{self, Product},
};
use crate::cuda::{Boxes, Launch, Module, boxes, gpu_of, launch, module};
use keyfold_core::DType;
use keyfold_tensor::{Tensor, cuda::Gpu};

static KERNELS: Module = module!("linear_skinny");

/// Tokens at most.
const TOKENS: usize = 64;
/// Outputs of a warpgroup, and summed columns of a tile.
const STEP: usize = 64;
/// Outputs from which a block has two warpgroups: as many blocks are there anyway, and x is read half as often.
const WIDE: usize = 8192;
/// Blocks that a product is cut into at least, as far as parts of its sums go: half as many again as there are
/// multiprocessors keep memory busier than as many.
const BLOCKS: usize = 176;
/// Parts of a sum at most.
const PARTS: usize = 6;
/// Bytes of shared memory of a block: two fit a multiprocessor, of one product or of this and the next.
pub(super) const SHARED: usize = 113 << 10;
/// Bytes of it that are no tiles: room to align them, and barriers.
const HEAD: usize = 2 << 10;
/// Tiles in shared memory: at least, so that one is asked for while one is multiplied, and at most, for which there are barriers.
const STAGES: std::ops::RangeInclusive<usize> = 2..=20;
/// Tiles of the weight under way at most: more make everything else that a block asks for wait in line.
const FLIGHT: i32 = 4;
/// Tiles of the weight that are still to be asked for when the next kernel may start. It comes to ask for its own as these
/// arrive; earlier, it would take its share of memory's time while there is work, and leave none for when there is not.
const LEAD: i32 = 6;

/// `Tiles` of skinny.cuh.
#[repr(C)]
struct Tiles {
    stages: i32,
    lead: i32,
    flight: i32,
}

/// How a product is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cut {
    /// Tokens, rounded up to those of a kernel.
    pub(super) tokens: usize,
    pub(super) warpgroups: usize,
    pub(super) blocks: usize,
    /// Blocks that share the columns of a sum.
    pub(super) parts: usize,
    /// Tiles in shared memory.
    pub(super) stages: usize,
    /// Bytes of shared memory.
    pub(super) shared: usize,
}

impl Cut {
    /// For `outputs` of `inputs` columns; nothing where shared memory is too small.
    pub(super) fn new(tokens: usize, inputs: usize, outputs: usize, normed: bool) -> Option<Self> {
        let tiles = inputs.div_ceil(STEP);
        let warpgroups = if outputs >= WIDE { 2 } else { 1 };
        let of_a_block = warpgroups * STEP;
        let blocks = outputs.div_ceil(of_a_block);
        let parts = ((2 * BLOCKS + blocks) / (2 * blocks)).clamp(1, PARTS).min(tiles);
        let rounded = tokens.next_power_of_two().max(8);
        let tile = (of_a_block + rounded) * STEP * 2;
        // A token's sums of a part, with four more floats.
        let row = (of_a_block + 4) * 4;
        let gains = if normed { tiles.div_ceil(parts) * STEP * 4 } else { 0 };
        let received = if parts > 1 { parts * tokens.div_ceil(parts) * row } else { 0 };
        let free = SHARED.checked_sub(HEAD + gains + received)?;
        // The block's own sums take the place of tiles.
        let least = (rounded * row).div_ceil(tile).max(*STAGES.start());
        let stages = tiles.div_ceil(parts).clamp(least, *STAGES.end()).min(free / tile);
        let shared = HEAD + stages * tile + gains + received;
        (stages >= least).then_some(Self { tokens: rounded, warpgroups, blocks, parts, stages, shared })
    }

    fn kernel(self) -> &'static str {
        match (self.warpgroups, self.tokens) {
            (1, 8) => "skinny_1_8",
            (1, 16) => "skinny_1_16",
            (1, 32) => "skinny_1_32",
            (1, _) => "skinny_1_64",
            (_, 8) => "skinny_2_8",
            (_, 16) => "skinny_2_16",
            (_, 32) => "skinny_2_32",
            _ => "skinny_2_64",
        }
    }
}

/// Whether the kernel takes these.
pub(super) fn serves(x: &Tensor, w: &Tensor) -> bool {
    // Those after Hopper lack its instructions.
    product::serves(x, w, TOKENS) && gpu_of(x).capability() == (9, 0)
}

/// Whether it takes a norm in too: its gains must find room.
pub(super) fn norms(x: &Tensor, w: &Tensor) -> bool {
    Cut::new(x.rows(), w.cols(), w.rows(), true).is_some()
}

/// `rows` rows of 64 columns of a matrix.
fn tiles_of(gpu: &Gpu, name: &str, matrix: &Tensor, rows: usize) -> Boxes {
    // A lone row's stride is never walked, but must be one that the copy engine accepts.
    let stride = if matrix.rows() > 1 { matrix.stride() } else { matrix.cols() };
    boxes(gpu, name, DType::Bf16, matrix.address(), [matrix.cols(), matrix.rows()], &[stride], [STEP, rows])
}

/// See [`super::forward_fused`]; `x` and `w` are such that the kernel [`serves`] them, and [`norms`] where there is a norm.
pub(super) fn run(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, fused: Fused<'_>, out: &Tensor) {
    let gpu = gpu_of(out);
    let product = Product::new(gpu, x, w, bias, fused, out);
    if out.is_empty() {
        return;
    }
    let Some(cut) = Cut::new(x.rows(), w.cols(), w.rows(), fused.norm.is_some()) else {
        crate::cuda::unsupported(gpu, format!("a norm of {} columns within a product", w.cols()))
    };
    let half = cut.warpgroups * STEP / 2;
    let (w_map, x_map) = (tiles_of(gpu, "linear: w", w, half), tiles_of(gpu, "linear: x", x, cut.tokens));
    let gated = fused.gate.is_some();
    let tiles = Tiles { stages: cut.stages as i32, lead: LEAD, flight: FLIGHT };
    // Gates and what they multiply share a block, so that an odd number of either may need one more.
    let blocks = if gated { out.cols().div_ceil(half) } else { cut.blocks };
    let threads = (cut.warpgroups * 128 + 64) as u32;
    let grid = Launch::blocks(blocks * cut.parts, threads).shared(cut.shared).cluster(cut.parts).early();
    launch!(gpu, KERNELS, cut.kernel(), grid; w_map, x_map, product, tiles);
}
