//! The gradients of a backward pass in progress.

use super::{Slot, Var};
use keyfold_tensor::{Arena, Tensor};

/// The value that a column view was cut from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parent {
    pub(super) slot: Slot,
    pub(super) column: usize,
}

/// Gradients by value. A gradient is absent until something contributes to it.
pub struct Gradients {
    arena: Arena,
    parents: Vec<Option<Parent>>,
    tensors: Vec<Option<Tensor>>,
    /// Whether the tensor may also serve as another value's gradient.
    shared: Vec<bool>,
}

impl Gradients {
    pub(super) fn new(arena: Arena, parents: Vec<Option<Parent>>) -> Self {
        let count = parents.len();
        Self { arena, parents, tensors: vec![None; count], shared: vec![false; count] }
    }

    /// Memory for a gradient of its own.
    pub(super) fn fresh(&self, slot: &Slot) -> Tensor {
        self.arena.tensor(slot.rows, slot.cols, super::activation_dtype(&self.arena))
    }

    /// Where scratch memory comes from.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The gradient of `var`, if anything contributed to it.
    pub fn of(&mut self, var: &Var) -> Option<Tensor> {
        self.take(&Slot::of(var))
    }

    /// The finished gradient of `slot`: nothing contributes to it any more.
    pub(super) fn take(&mut self, slot: &Slot) -> Option<Tensor> {
        self.tensors[slot.id].take()
    }

    /// The gradient of `slot` so far, left in place.
    pub(super) fn peek(&self, slot: &Slot) -> Option<Tensor> {
        self.tensors[slot.id].clone()
    }

    /// All gradients but those of values that are being put together from their parts'.
    pub(super) fn complete(&self) -> impl Iterator<Item = &Tensor> {
        let mut whole = vec![true; self.tensors.len()];
        for (parent, part) in self.parents.iter().zip(&self.tensors) {
            if let (Some(parent), Some(_)) = (parent, part) {
                whole[parent.slot.id] = false;
            }
        }
        self.tensors.iter().zip(whole).filter_map(|(tensor, whole)| tensor.as_ref().filter(|_| whole))
    }

    /// Memory to write a contribution to, and whether to add (`true`) or to overwrite (`false`).
    pub(super) fn target(&mut self, slot: &Slot) -> (Tensor, bool) {
        let dtype = super::activation_dtype(&self.arena);
        if let Some(tensor) = &self.tensors[slot.id] {
            if !self.shared[slot.id] || tensor.is_unique() {
                return (tensor.clone(), true);
            }
            let mut own = self.arena.tensor(slot.rows, slot.cols, dtype);
            keyfold_ops::cast::copy(tensor, &mut own);
            self.tensors[slot.id] = Some(own.clone());
            self.shared[slot.id] = false;
            return (own, true);
        }
        let tensor = match self.parents[slot.id] {
            None => self.arena.tensor(slot.rows, slot.cols, dtype),
            Some(parent) => {
                let whole = self.tensors[parent.slot.id]
                    .get_or_insert_with(|| self.arena.tensor(parent.slot.rows, parent.slot.cols, dtype));
                whole.columns(parent.column, slot.cols)
            }
        };
        self.tensors[slot.id] = Some(tensor.clone());
        (tensor, false)
    }

    /// Adds `gradient`, which may be in use as another value's gradient too.
    pub(super) fn add(&mut self, slot: &Slot, gradient: Tensor) {
        if self.tensors[slot.id].is_none() && self.parents[slot.id].is_none() {
            self.tensors[slot.id] = Some(gradient);
            self.shared[slot.id] = true;
            return;
        }
        let (mut tensor, accumulate) = self.target(slot);
        if accumulate {
            keyfold_ops::add::assign(&mut tensor, &gradient);
        } else {
            keyfold_ops::cast::copy(&gradient, &mut tensor);
        }
    }

    /// Completes the gradient of a value that was split into `parts`: parts without a gradient count as zero.
    pub(super) fn join(&mut self, parts: &[Slot]) {
        if parts.iter().all(|part| self.tensors[part.id].is_none()) {
            return;
        }
        for part in parts {
            if self.tensors[part.id].is_none() {
                self.target(part).0.fill_zero();
            }
            self.tensors[part.id] = None;
        }
    }
}
