//! Work that a tape puts off until it is known what follows, so that both are one kernel of a GPU.
//!
//! For a few rows a norm is part of the product that reads it, a residual sum part of the product that is added, and a gated
//! activation part of its product ([`linear::forward_fused`]). A value that is put off has its memory, but nothing in it; any
//! other op that might read it has it computed first.

use super::{Tape, Var};
use crate::weights::{Param, Projection};
use keyfold_core::DType;
use keyfold_ops::{
    glu::Activation,
    linear::{self, Fused},
    rms_norm,
};
use keyfold_tensor::{Arena, Tensor};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// What is put off.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// RMSNorm of all columns.
    Norm { x: Tensor, gain: Tensor, eps: f32 },
    /// A product, perhaps of a norm.
    Product { x: Tensor, norm: Option<(Tensor, f32)>, weight: Tensor },
}

/// A value that is put off.
#[derive(Debug)]
pub(super) struct Later {
    work: Work,
    value: Tensor,
    /// Whether it has been computed; shared with its [`Var`]s.
    done: Arc<AtomicBool>,
    /// Whether an op made it part of itself: most probably nobody needs it any more.
    fused: bool,
}

impl Later {
    /// Whether a [`Var`] of it is still there.
    fn wanted(&self) -> bool {
        Arc::strong_count(&self.done) > 1
    }

    fn compute(&mut self, arena: &Arena) {
        match &self.work {
            Work::Norm { x, gain, eps } => {
                let mut rstd = arena.tensor(x.rows(), 1, DType::F32);
                rms_norm::forward(x, None, gain, *eps, None, &mut self.value, &mut rstd);
            }
            Work::Product { x, norm, weight } => {
                let norm = norm.as_ref().map(|(gain, eps)| (gain, *eps));
                linear::forward_fused(x, weight, None, Fused { norm, ..Fused::default() }, &mut self.value);
            }
        }
        self.done.store(true, Ordering::Relaxed);
    }
}

impl Tape {
    /// Whether norms and products of rows like `x` are put off.
    fn puts_off(&self, x: &Tensor, weight: &Tensor) -> bool {
        !self.recording && linear::fuses(x, weight)
    }

    /// Computes what is put off and was not made part of another op: before an op that may read it, or its value is taken from
    /// the tape.
    pub fn settle(&mut self) {
        for later in self.later.iter_mut().filter(|later| later.wanted() && !later.fused) {
            later.compute(&self.arena);
        }
        self.later.retain(|later| later.wanted() && later.fused);
    }

    /// Computes `x` if it is put off: for ops that read it beside those that make it part of themselves.
    pub fn ready(&mut self, x: &Var) {
        if let Some(at) = self.place_of(x) {
            self.later.remove(at).compute(&self.arena);
        }
    }

    /// A value of so many columns that is put off.
    fn put_off(&mut self, work: Work, cols: usize) -> Var {
        let (Work::Norm { x, .. } | Work::Product { x, .. }) = &work;
        let value = self.activations(x.rows(), cols);
        let done = Arc::new(AtomicBool::new(false));
        self.later.push(Later { work, value: value.clone(), done: done.clone(), fused: false });
        Var { done: Some(done), ..self.var_of(value) }
    }

    fn place_of(&self, x: &Var) -> Option<usize> {
        let done = x.done.as_ref()?;
        self.later.iter().position(|later| Arc::ptr_eq(&later.done, done))
    }

    /// What computes `x`, if it is put off; it becomes part of another op.
    fn work_of(&mut self, x: &Var) -> Option<Work> {
        let place = self.place_of(x)?;
        let later = &mut self.later[place];
        later.fused = true;
        Some(later.work.clone())
    }

    /// The input of a product with `x`: what is normalised, and how.
    fn normalised(&mut self, x: &Var) -> (Tensor, Option<(Tensor, f32)>) {
        match self.work_of(x) {
            Some(Work::Norm { x, gain, eps }) => (x, Some((gain, eps))),
            Some(Work::Product { .. }) => {
                self.ready(x);
                (x.tensor.clone(), None)
            }
            None => (x.tensor.clone(), None),
        }
    }

    /// As [`Tape::rms_norm`] of all columns, if it can be put off.
    pub(super) fn norm_later(&mut self, x: &Tensor, gain: &Param, eps: f32) -> Option<Var> {
        // Any weight beside it: the product that follows is of the same kind.
        if self.recording || !linear::fuses(x, x) || gain.value.cols() != x.cols() {
            return None;
        }
        let work = Work::Norm { x: x.clone(), gain: gain.value.clone(), eps };
        Some(self.put_off(work, x.cols()))
    }

    /// As [`Tape::linear`], of which the residual sum, a norm or an activation is what follows.
    pub fn linear_later(&mut self, x: &Var, weight: &Param) -> Var {
        let (input, norm) = self.normalised(x);
        if !self.puts_off(&input, &weight.value) {
            return self.linear(x, weight);
        }
        let weight = weight.value.clone();
        let cols = weight.rows();
        self.put_off(Work::Product { x: input, norm, weight }, cols)
    }

    /// As [`Tape::project`]; see [`Tape::linear_later`].
    pub fn project_later(&mut self, x: &Var, projection: &Projection) -> Var {
        match (&projection.parts[..], &projection.bias) {
            ([part], None) => self.linear_later(x, part),
            _ => self.project(x, projection),
        }
    }

    /// `x` through `weight` into `out`, if `x` is a norm that is put off.
    pub(super) fn of_norm(
        &mut self,
        x: &Var,
        weight: &Tensor,
        bias: Option<&Tensor>,
        out: &mut Tensor,
    ) -> bool {
        match self.work_of(x) {
            Some(Work::Norm { x, gain, eps }) => {
                let fused = Fused { norm: Some((&gain, eps)), ..Fused::default() };
                linear::forward_fused(&x, weight, bias, fused, out);
                true
            }
            Some(Work::Product { .. }) => {
                self.ready(x);
                false
            }
            None => false,
        }
    }

    /// `activation(gate) * up`, if both are a product that is put off.
    pub(super) fn gate_product(&mut self, activation: Activation, gate_up: &Var) -> Option<Var> {
        let Some(Work::Product { x, norm, weight }) = self.work_of(gate_up) else { return None };
        let mut out = self.activations(x.rows(), weight.rows() / 2);
        let norm = norm.as_ref().map(|(gain, eps)| (gain, *eps));
        let fused = Fused { norm, gate: Some(activation), accumulate: false };
        linear::forward_fused(&x, &weight, None, fused, &mut out);
        Some(self.var_of(out))
    }

    /// Adds `delta` to `x` in place, if it is a product that is put off. Nobody reads `x` as it was any more.
    pub(super) fn add_product(&mut self, x: &Var, delta: &Var) -> bool {
        let Some(Work::Product { x: input, norm, weight }) = self.work_of(delta) else { return false };
        // Norms of `x` as it was are not for later.
        let address = x.tensor.address();
        let reads = |later: &Later| matches!(&later.work, Work::Norm { x, .. } if x.address() == address);
        for later in self.later.iter_mut().filter(|later| later.wanted() && reads(later)) {
            later.compute(&self.arena);
        }
        self.later.retain(|later| later.wanted() && !reads(later));
        let norm = norm.as_ref().map(|(gain, eps)| (gain, *eps));
        let fused = Fused { norm, accumulate: true, gate: None };
        linear::forward_fused(&input, &weight, None, fused, &mut x.tensor.clone());
        true
    }
}
