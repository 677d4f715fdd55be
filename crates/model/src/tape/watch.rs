//! Which op's result is the first that is not finite.

use super::Gradients;
use keyfold_core::DType;
use keyfold_ops::{adamw, cast};
use keyfold_tensor::{Arena, Tensor};
use std::{cell::RefCell, fmt, rc::Rc};

/// In which pass an op ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Values.
    Forward,
    /// Gradients.
    Backward,
}

/// An op whose result is not finite, though those before were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Culprit {
    /// The op: a method of [`Tape`](super::Tape).
    pub op: &'static str,
    /// The layer it belongs to; none for embedding, last norm and loss.
    pub layer: Option<usize>,
    /// Where its result was seen.
    pub pass: Pass,
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, layer, pass } = self;
        let pass = match pass {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
        };
        match layer {
            Some(layer) => write!(f, "{op} of layer {layer} ({pass})"),
            None => write!(f, "{op} ({pass})"),
        }
    }
}

/// Looks at every result of the tapes that it is given to ([`Tape::watched`](super::Tape::watched)), and waits for a device
/// each time: for looking into a step that failed.
#[derive(Clone)]
pub struct Watch(Rc<RefCell<State>>);

struct State {
    arena: Arena,
    layer: Option<usize>,
    /// Results since the last op was recorded.
    fresh: Vec<Tensor>,
    /// Gradients of weights, which ops add to in place.
    weights: Vec<Tensor>,
    culprit: Option<Culprit>,
}

impl Watch {
    /// For tapes in `arena` whose ops add to the gradients `weights`.
    pub fn new(arena: &Arena, weights: Vec<Tensor>) -> Self {
        let arena = arena.clone();
        Self(Rc::new(RefCell::new(State { arena, layer: None, fresh: Vec::new(), weights, culprit: None })))
    }

    /// The first op whose result was not finite.
    pub fn culprit(&self) -> Option<Culprit> {
        self.0.borrow().culprit
    }

    pub(super) fn enter(&self, layer: Option<usize>) {
        self.0.borrow_mut().layer = layer;
    }

    pub(super) fn layer(&self) -> Option<usize> {
        self.0.borrow().layer
    }

    pub(super) fn value(&self, value: &Tensor) {
        let mut state = self.0.borrow_mut();
        if state.culprit.is_none() {
            state.fresh.push(value.clone());
        }
    }

    /// Looks at the results of `op`, which has run; the layer it belongs to.
    pub(super) fn forward(&self, op: &'static str) -> Option<usize> {
        let mut state = self.0.borrow_mut();
        let (layer, fresh) = (state.layer, std::mem::take(&mut state.fresh));
        if state.culprit.is_none() && !fresh.iter().all(|value| state.finite(value)) {
            state.culprit = Some(Culprit { op, layer, pass: Pass::Forward });
        }
        layer
    }

    /// Looks at all gradients after the backward pass of `op`.
    pub(super) fn backward(&self, op: &'static str, layer: Option<usize>, gradients: &Gradients) {
        let mut state = self.0.borrow_mut();
        if state.culprit.is_some() {
            return;
        }
        let finite = gradients.complete().chain(&state.weights).all(|gradient| state.finite(gradient));
        if !finite {
            state.culprit = Some(Culprit { op, layer, pass: Pass::Backward });
        }
    }
}

impl State {
    fn finite(&self, tensor: &Tensor) -> bool {
        if tensor.dtype() == DType::F32 && tensor.is_contiguous() {
            return adamw::sum_of_squares(tensor).is_finite();
        }
        let mut wide = self.arena.tensor(tensor.rows(), tensor.cols(), DType::F32);
        cast::copy(tensor, &mut wide);
        adamw::sum_of_squares(&wide).is_finite()
    }
}
