//! Reverse-mode differentiation over fused ops.
//!
//! A [`Tape`] runs ops forward and, when it records, keeps for each one a closure that runs its hand-written backward.
//! Values live in [`Var`]s: a value is freed as soon as neither the model code nor a closure holds it, and a closure's
//! saved tensors are freed right after it ran, so memory falls while the backward pass proceeds.
//!
//! Three rules keep the tape from adding passes of its own:
//! * parameters are not nodes: their gradients accumulate in place, in the weights' flat buffer ([`crate::weights::Param`]);
//! * [`Tape::split`] makes column views: gradients of the parts are written straight into their parent's gradient;
//! * a gradient that flows unchanged into two places (a residual sum) is shared, and copied only if one of them adds to it.

mod gradients;
mod later;
mod moe;
mod ops;
mod watch;

pub use gradients::Gradients;
pub use keyfold_ops::cross_entropy::{Loss, Pending};
pub use ops::{AttentionArgs, HeadVar};
pub use watch::{Culprit, Pass, Watch};

use keyfold_core::DType;
use keyfold_tensor::{Arena, Device, Tensor};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

type Backward = Box<dyn FnOnce(&mut Gradients)>;

/// The element type of activations and of their gradients in the memory of `arena`: what the device computes with.
fn activation_dtype(arena: &Arena) -> DType {
    match arena.device() {
        Device::Cpu => DType::F32,
        Device::Cuda(_) => DType::Bf16,
    }
}

/// A value on the tape: `[tokens, columns]`.
#[derive(Clone, Debug)]
pub struct Var {
    id: usize,
    tensor: Tensor,
    /// Whether the value has been computed, if it was put off.
    done: Option<Arc<AtomicBool>>,
}

impl Var {
    /// The value.
    ///
    /// # Panics
    /// When it was put off and not [settled](Tape::settle).
    pub fn value(&self) -> &Tensor {
        let done = self.done.as_ref().is_none_or(|done| done.load(Ordering::Relaxed));
        assert!(done, "tape: a value that was put off is read");
        &self.tensor
    }

    fn rows(&self) -> usize {
        self.tensor.rows()
    }

    fn cols(&self) -> usize {
        self.tensor.cols()
    }
}

/// Records ops so that they can be differentiated.
pub struct Tape {
    arena: Arena,
    recording: bool,
    saved_dtype: DType,
    nodes: Vec<Node>,
    parents: Vec<Option<gradients::Parent>>,
    /// Values that are yet to be computed.
    later: Vec<later::Later>,
    watch: Option<Watch>,
}

/// A recorded op.
struct Node {
    op: &'static str,
    /// Known where the tape is watched.
    layer: Option<usize>,
    backward: Backward,
}

impl Tape {
    /// A tape that records; `saved_dtype` is how values kept for the backward pass are stored on the host. A GPU keeps them
    /// as they are.
    pub fn recording(arena: &Arena, saved_dtype: DType) -> Self {
        Self {
            arena: arena.clone(),
            recording: true,
            saved_dtype,
            nodes: Vec::new(),
            parents: Vec::new(),
            later: Vec::new(),
            watch: None,
        }
    }

    /// The tape with an eye on every op's results, which is slow.
    #[must_use]
    pub fn watched(self, watch: &Watch) -> Self {
        Self { watch: Some(watch.clone()), ..self }
    }

    /// What follows belongs to layer `layer`, or to none.
    pub fn enter(&self, layer: Option<usize>) {
        if let Some(watch) = &self.watch {
            watch.enter(layer);
        }
    }

    /// A tape that only computes.
    pub fn inference(arena: &Arena) -> Self {
        Self { recording: false, ..Self::recording(arena, DType::F32) }
    }

    /// Where the tape's values are allocated.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Whether ops are recorded.
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// Memory for activations, of unspecified values: [rows, cols].
    pub fn activations(&self, rows: usize, cols: usize) -> Tensor {
        self.arena.tensor(rows, cols, activation_dtype(&self.arena))
    }

    /// A value that comes from outside.
    pub fn leaf(&mut self, value: Tensor) -> Var {
        self.var(value, None)
    }

    /// Runs all recorded ops backward, last one first, and empties the tape. What begins it is a loss
    /// ([`Tape::linear_cross_entropy`]), or gradients given in `seeds`.
    pub fn backward(&mut self, seeds: Vec<(Var, Tensor)>) -> Gradients {
        let mut gradients = Gradients::new(self.arena.clone(), std::mem::take(&mut self.parents));
        for (var, gradient) in seeds {
            gradients.add(&Slot::of(&var), gradient);
        }
        while let Some(node) = self.nodes.pop() {
            (node.backward)(&mut gradients);
            if let Some(watch) = &self.watch {
                watch.backward(node.op, node.layer, &gradients);
            }
        }
        gradients
    }

    /// Runs `layer` without recording it and keeps only its inputs; the backward pass runs it again.
    pub fn checkpoint(
        &mut self,
        x: Var,
        update: Option<Var>,
        layer: impl Fn(&mut Tape, Var, Option<Var>) -> (Var, Var) + 'static,
    ) -> (Var, Var) {
        let (saved_x, saved_update) =
            (self.save(x.value()), update.as_ref().map(|update| self.save(update.value())));
        let (from_x, from_update) = (Slot::of(&x), update.as_ref().map(Slot::of));
        let mut inner = match &self.watch {
            None => Self::inference(&self.arena),
            Some(watch) => Self::recording(&self.arena, self.saved_dtype).watched(watch),
        };
        let (inner_x, inner_update) = (inner.leaf(x.tensor), update.map(|update| inner.leaf(update.tensor)));
        let (x, update) = layer(&mut inner, inner_x, inner_update);
        let (x, update) = (self.leaf(x.tensor), self.leaf(update.tensor));
        let (to_x, to_update, saved_dtype) = (Slot::of(&x), Slot::of(&update), self.saved_dtype);
        let watch = self.watch.clone();
        let at = watch.as_ref().and_then(Watch::layer);
        self.record("checkpoint", move |g| {
            let seeds = [g.take(&to_x), g.take(&to_update)];
            let arena = g.arena().clone();
            let mut inner = Self::recording(&arena, saved_dtype);
            if let Some(watch) = watch {
                inner = inner.watched(&watch);
                inner.enter(at);
            }
            let x = inner.leaf(saved_x.load(&arena));
            let update = saved_update.map(|saved| inner.leaf(saved.load(&arena)));
            let (out_x, out_update) = layer(&mut inner, x.clone(), update.clone());
            let seeds = [out_x, out_update].into_iter().zip(seeds);
            let mut gradients = inner.backward(seeds.filter_map(|(var, seed)| Some((var, seed?))).collect());
            if let Some(dx) = gradients.of(&x) {
                g.add(&from_x, dx);
            }
            if let (Some(update), Some(from)) = (update, from_update)
                && let Some(d_update) = gradients.of(&update)
            {
                g.add(&from, d_update);
            }
        });
        (x, update)
    }

    fn var(&mut self, tensor: Tensor, parent: Option<gradients::Parent>) -> Var {
        self.settle();
        self.parents.push(parent);
        self.watch_value(&tensor);
        Var { id: self.parents.len() - 1, tensor, done: None }
    }

    /// A value beside those that are put off.
    fn var_of(&mut self, tensor: Tensor) -> Var {
        self.parents.push(None);
        self.watch_value(&tensor);
        Var { id: self.parents.len() - 1, tensor, done: None }
    }

    fn output(&mut self, rows: usize, cols: usize) -> Var {
        let value = self.activations(rows, cols);
        self.var(value, None)
    }

    /// Keeps `backward` for the op of the name `op`, which has just run.
    fn record(&mut self, op: &'static str, backward: impl FnOnce(&mut Gradients) + 'static) {
        if self.recording {
            let layer = self.watch.as_ref().and_then(|watch| watch.forward(op));
            self.nodes.push(Node { op, layer, backward: Box::new(backward) });
        }
    }

    /// Has the next recorded op answer for `value`.
    fn watch_value(&self, value: &Tensor) {
        if let Some(watch) = &self.watch {
            watch.value(value);
        }
    }

    /// Keeps `value` for the backward pass, in the tape's storage type.
    fn save(&self, value: &Tensor) -> Saved {
        if !self.recording || self.saved_dtype == DType::F32 || value.dtype() != DType::F32 {
            return Saved(value.clone());
        }
        let mut stored = self.arena.tensor(value.rows(), value.cols(), self.saved_dtype);
        keyfold_ops::cast::copy(value, &mut stored);
        Saved(stored)
    }
}

/// Where the gradient of a [`Var`] goes; keeps no value alive.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    id: usize,
    rows: usize,
    cols: usize,
}

impl Slot {
    /// The slot of `var`.
    pub fn of(var: &Var) -> Self {
        Self { id: var.id, rows: var.rows(), cols: var.cols() }
    }
}

/// A value kept for the backward pass.
struct Saved(Tensor);

impl Saved {
    /// The value as it was.
    fn load(&self, arena: &Arena) -> Tensor {
        let dtype = activation_dtype(arena);
        if self.0.dtype() == dtype {
            return self.0.clone();
        }
        let mut wide = arena.tensor(self.0.rows(), self.0.cols(), dtype);
        keyfold_ops::cast::copy(&self.0, &mut wide);
        wide
    }
}

#[cfg(test)]
mod tests;
