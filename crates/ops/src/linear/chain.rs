//! Launches of `chain.cu`: products of one row, one after the other, in one kernel of Hopper.
//!
//! A product that the kernel takes is put off until the stream is asked for anything else ([`Gpu::defer`]): those that follow
//! it, each of what one before it made, are part of the same kernel then. Nobody has to know which they are.

use super::{
    Fused,
    product::{self, Product},
};
use crate::{
    cuda::{Launch, Module, gpu_of, launch, module},
    glu::Activation,
};
use keyfold_core::DType;
use keyfold_tensor::{Arena, Device, Tensor, cuda::Gpu};
use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

static KERNELS: Module = module!("linear_chain");

/// Columns of a weight at most: blocks keep whole inputs.
const INPUTS: usize = 16384;
/// Products of a chain at most: `LONGEST` in chain.cu.
const LONGEST: usize = 8;
/// Threads of a block: those that multiply, and warps that ask for weights.
const THREADS: u32 = 512 + 4 * 32;
/// Multiprocessors that are left to attention of one sequence, a cluster, which can be there before its queries are then.
const BESIDE: usize = 16;
/// Bytes of barriers, two of them for each slot; columns and bytes of a slot of weights.
const HEAD: usize = 256;
const COLUMNS: usize = 2048;
const SLOT: usize = 16 << 10;
/// Slots under way at most: more make everything else that a block asks for wait in line.
const FLIGHT: i32 = 3;

/// `Link` of chain.cu.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Link {
    product: Product,
    w: u64,
    x: u64,
    x_words: u64,
    out_words: u64,
}

/// `Chain` of chain.cu.
#[repr(C)]
struct Chain {
    links: [Link; LONGEST],
    launches: u64,
    ended: u64,
    count: i32,
    slots: i32,
    flight: i32,
    input: i32,
}

/// A product that is put off. What it reads and writes is held until it is launched.
struct Task {
    x: Tensor,
    w: Tensor,
    bias: Option<Tensor>,
    norm: Option<(Tensor, f32)>,
    gate: Option<Activation>,
    accumulate: bool,
    out: Tensor,
    /// Which of the chain made `x`; none where it was there before.
    source: Option<usize>,
}

/// What is put off, by GPU.
static WAITING: Mutex<Vec<(usize, Vec<Task>)>> = Mutex::new(Vec::new());

/// Words by which blocks tell each other what they have made, for each sequence of products: that every launch writes them
/// all is how those of the launch before are known.
static WORDS: Mutex<Vec<(Signature, Tensor)>> = Mutex::new(Vec::new());

#[derive(PartialEq, Eq)]
struct Signature {
    gpu: usize,
    /// Of each product its outputs, if they are bf16.
    outputs: Vec<Option<usize>>,
}

/// Whether the kernel takes these.
pub(super) fn serves(x: &Tensor, w: &Tensor) -> bool {
    product::serves(x, w, 1) && w.cols() <= INPUTS && gpu_of(x).capability() == (9, 0)
}

/// Puts off a product; see [`super::forward_fused`]. `x` and `w` are such that the kernel [`serves`] them.
pub(super) fn put_off(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, fused: Fused<'_>, out: &Tensor) {
    let gpu = gpu_of(out);
    if out.is_empty() {
        return;
    }
    let mut task = Task {
        x: x.clone(),
        w: w.clone(),
        bias: bias.cloned(),
        norm: fused.norm.map(|(gain, eps)| (gain.clone(), eps)),
        gate: fused.gate,
        accumulate: fused.accumulate,
        out: out.clone(),
        source: None,
    };
    // The element types are checked where the mistake is made, not where the chain is launched.
    task.product(gpu);
    while let Some(refused) = with_waiting(gpu, |chain| task.join(chain)) {
        // Asking for the stream launches the others.
        gpu.stream();
        task = refused;
    }
    gpu.defer(launch_waiting);
}

fn with_waiting<T>(gpu: &Gpu, work: impl FnOnce(&mut Vec<Task>) -> T) -> T {
    // Pushing to a list or taking it is whole whatever interrupts it.
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    let at = waiting.iter().position(|(index, _)| *index == gpu.index()).unwrap_or_else(|| {
        waiting.push((gpu.index(), Vec::new()));
        waiting.len() - 1
    });
    work(&mut waiting[at].1)
}

/// Launches what is put off.
fn launch_waiting(gpu: &Gpu) {
    let chain = with_waiting(gpu, std::mem::take);
    match &chain[..] {
        [] => (),
        [alone] if product::at_once(&alone.x, &alone.w, alone.bias.as_ref(), alone.fused(), &alone.out) => (),
        tasks => run(gpu, tasks),
    }
}

fn run(gpu: &Gpu, tasks: &[Task]) {
    let outputs: Vec<_> = tasks.iter().map(|task| task.is_input().then(|| task.out.cols())).collect();
    // Those of a product begin at multiples of 32 bytes, behind the counts of launches and of blocks that have ended.
    let mut size = 8;
    let starts: Vec<usize> = outputs
        .iter()
        .map(|outputs| {
            let start = size;
            size += outputs.unwrap_or(0).next_multiple_of(8);
            start
        })
        .collect();
    let words = words(Signature { gpu: gpu.index(), outputs }, size);
    let word = |number: usize| words.address() + 4 * number as u64;
    let widest = tasks.iter().map(|task| task.w.cols()).max().unwrap_or(0);
    let input = 2 * widest.next_multiple_of(COLUMNS);
    let room = KERNELS.function(gpu, "chain").shared_limit() - HEAD - input;
    let slots = (room / SLOT).min(HEAD / 16);
    let mut chain = Chain {
        links: Default::default(),
        launches: word(0),
        ended: word(1),
        count: tasks.len() as i32,
        slots: slots as i32,
        flight: FLIGHT,
        input: input as i32,
    };
    for (at, (link, task)) in chain.links.iter_mut().zip(tasks).enumerate() {
        *link = Link {
            product: task.product(gpu),
            w: task.w.address(),
            x: task.x.address(),
            // Words are twice as wide as what they stand for.
            x_words: task.source.map_or(0, |source| {
                word(starts[source]) + 2 * (task.x.address() - tasks[source].out.address())
            }),
            out_words: if task.is_input() { word(starts[at]) } else { 0 },
        };
    }
    let blocks = gpu.multiprocessors().saturating_sub(BESIDE).max(1);
    let grid = Launch::blocks(blocks, THREADS).shared(HEAD + input + slots * SLOT).early();
    launch!(gpu, KERNELS, "chain", grid; chain);
}

/// `size` words for chains of a signature; at first zeros.
fn words(signature: Signature, size: usize) -> Tensor {
    // As above.
    let mut all = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, words)) = all.iter().find(|(other, _)| *other == signature) {
        return words.clone();
    }
    let arena = Arena::on(Device::Cuda(signature.gpu)).unwrap_or_else(|error| error.raise());
    let words = arena.zeros(1, size, DType::F32);
    all.push((signature, words.clone()));
    words
}

/// The bytes of a tensor of one row.
fn span(tensor: &Tensor) -> Range<u64> {
    tensor.address()..tensor.address() + (tensor.cols() * tensor.dtype().bytes()) as u64
}

fn overlap(a: &Tensor, b: &Tensor) -> bool {
    let (a, b) = (span(a), span(b));
    a.start < b.end && b.start < a.end
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    (a.address(), a.cols()) == (b.address(), b.cols())
}

impl Task {
    fn fused(&self) -> Fused<'_> {
        let norm = self.norm.as_ref().map(|(gain, eps)| (gain, *eps));
        Fused { norm, gate: self.gate, accumulate: self.accumulate }
    }

    fn product(&self, gpu: &Gpu) -> Product {
        Product::new(gpu, &self.x, &self.w, self.bias.as_ref(), self.fused(), &self.out)
    }

    /// Whether products of the same chain may read what it makes.
    fn is_input(&self) -> bool {
        self.out.dtype() == DType::Bf16
    }

    /// Becomes the last of `chain`, unless it must not follow the others in one kernel.
    fn join(mut self, chain: &mut Vec<Self>) -> Option<Self> {
        // The last that wrote there.
        self.source = chain.iter().rposition(|task| overlap(&task.out, &self.x));
        if chain.len() == LONGEST || !self.may_follow(chain) {
            return Some(self);
        }
        chain.push(self);
        None
    }

    /// Whether it may follow `chain` in one kernel, in which blocks wait for each other only by the words that they read.
    fn may_follow(&self, chain: &[Self]) -> bool {
        let reads = self.source.is_none_or(|at| {
            let out = &chain[at].out;
            let (inner, outer) = (span(&self.x), span(out));
            let within = outer.start <= inner.start && inner.end <= outer.end;
            chain[at].is_input() && within && (inner.start - outer.start).is_multiple_of(16)
        });
        // A sum belongs to the same thread each time; rows of gates are dealt out differently.
        let writes = chain.iter().all(|task| {
            let sum = same(&task.out, &self.out) && task.gate.is_none() && self.gate.is_none();
            !overlap(&task.out, &self.out) || sum && task.out.dtype() == self.out.dtype()
        });
        // Inputs that were there before are read from where they are.
        let unread = |(at, task): (usize, &Self)| {
            task.source.is_some() || !overlap(&task.x, &self.out) || self.is_behind(chain, at)
        };
        reads && writes && chain.iter().enumerate().all(unread)
    }

    /// Whether blocks write what this makes when all of number `at` has been made.
    fn is_behind(&self, chain: &[Self], at: usize) -> bool {
        let mut task = self;
        while let Some(source) = task.source {
            if source == at {
                return same(&chain[at].out, &task.x);
            }
            task = &chain[source];
        }
        false
    }
}
