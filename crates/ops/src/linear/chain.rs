//! Launches of `chain.cu`: products of one row, one after the other, in one kernel of Hopper.
//!
//! A product that the kernel takes is put off until the stream is asked for anything else ([`Gpu::defer`]): those that follow
//! it, each of what one before it made, are part of the same kernel then. Nobody has to know which they are.

use super::{
    Fused,
    order::Order,
    product::{self, Product},
};
use crate::{
    cuda::{Launch, Module, gpu_of, launch, module},
    glu::Activation,
};
use keyfold_core::DType;
use keyfold_tensor::{Arena, Device, Tensor, cuda::Gpu};
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

static KERNELS: Module = module!("linear_chain");

/// Elements of the weights of a chain on average, beyond which to wait for each other takes less than to be a kernel each: 1 M
/// are 13 % slower together, 3 M 8 % quicker.
const LARGE: usize = 2 << 20;
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
}

/// What is put off on a GPU.
#[derive(Default)]
struct Waiting {
    tasks: Vec<Task>,
    order: Order,
}

/// By GPU.
static WAITING: Mutex<Vec<(usize, Waiting)>> = Mutex::new(Vec::new());

/// Whether chains of any size are one kernel.
static ANY_SIZE: AtomicBool = AtomicBool::new(false);

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

/// Runs `work`, which reads its results, with chains of any size in one kernel: for the checks of that kernel.
pub(crate) fn in_one_kernel(work: impl FnOnce()) {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            ANY_SIZE.store(false, Ordering::Relaxed);
        }
    }
    let _reset = Reset;
    ANY_SIZE.store(true, Ordering::Relaxed);
    work();
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
    };
    // The element types are checked where the mistake is made, not where the chain is launched.
    task.product(gpu);
    while let Some(refused) = with_waiting(gpu, |waiting| waiting.add(task)) {
        // Asking for the stream launches the others.
        gpu.stream();
        task = refused;
    }
    gpu.defer(launch_waiting);
}

fn with_waiting<T>(gpu: &Gpu, work: impl FnOnce(&mut Waiting) -> T) -> T {
    // Pushing to a list or taking it is whole whatever interrupts it.
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    let at = waiting.iter().position(|(index, _)| *index == gpu.index()).unwrap_or_else(|| {
        waiting.push((gpu.index(), Waiting::default()));
        waiting.len() - 1
    });
    work(&mut waiting[at].1)
}

/// Launches what is put off: in one kernel, or each in its own where that is quicker.
fn launch_waiting(gpu: &Gpu) {
    let Waiting { tasks, order } = with_waiting(gpu, std::mem::take);
    let weights: usize = tasks.iter().map(|task| task.w.rows() * task.w.cols()).sum();
    let large = weights > LARGE * tasks.len() || ANY_SIZE.load(Ordering::Relaxed);
    if tasks.len() > 1 && large {
        return run(gpu, &tasks, &order);
    }
    for task in tasks {
        if !product::at_once(&task.x, &task.w, task.bias.as_ref(), task.fused(), &task.out) {
            let mut order = Order::default();
            order.admits(&task.x, &task.out, task.gate.is_some());
            run(gpu, &[task], &order);
        }
    }
}

fn run(gpu: &Gpu, tasks: &[Task], order: &Order) {
    let outputs: Vec<_> =
        tasks.iter().enumerate().map(|(at, task)| order.is_input(at).then(|| task.out.cols())).collect();
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
            x_words: order.source(at).map_or(0, |(source, bytes)| word(starts[source]) + 2 * bytes),
            out_words: if order.is_input(at) { word(starts[at]) } else { 0 },
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

impl Waiting {
    /// Adds a task, or gives it back where it must not be in one kernel with the others.
    fn add(&mut self, task: Task) -> Option<Task> {
        if self.tasks.len() == LONGEST || !self.order.admits(&task.x, &task.out, task.gate.is_some()) {
            return Some(task);
        }
        self.tasks.push(task);
        None
    }
}

impl Task {
    fn fused(&self) -> Fused<'_> {
        let norm = self.norm.as_ref().map(|(gain, eps)| (gain, *eps));
        Fused { norm, gate: self.gate, accumulate: self.accumulate }
    }

    fn product(&self, gpu: &Gpu) -> Product {
        Product::new(gpu, &self.x, &self.w, self.bias.as_ref(), self.fused(), &self.out)
    }
}
