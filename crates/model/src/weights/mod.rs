//! Declared weights and the flat memory, or the mapped file, that holds them.
//!
//! A module declares its weights once: name, shape, initialisation, decay. Initialising, loading, saving, counting and
//! optimizing all read that list. Matrices share one flat buffer and vectors (norm gains, gates) another, in the order
//! of declaration, so that projections declared one after the other are one wider matrix ([`Scope::project`]), an
//! optimizer step is two calls, and the gradient norm is two sums.

mod declare;
mod projection;

pub(crate) use declare::Declarations;
pub use declare::{Declared, Init, InitConfig, Part};
pub use projection::Projection;

use crate::error::WeightError;
use keyfold_core::DType;
use keyfold_ops::cast;
use keyfold_tensor::{Arena, Device, Tensor};
use rand_distr::{Distribution, StandardNormal};
use std::collections::HashMap;

/// A weight as a module holds it: its value, and where its gradient goes when the model is trained.
#[derive(Clone, Debug)]
pub struct Param {
    /// `[out, in]`, or `[1, n]` for a vector.
    pub value: Tensor,
    /// Same shape, f32.
    pub grad: Option<Tensor>,
}

/// One flat buffer: matrices or vectors.
#[derive(Clone, Debug)]
pub struct Flat {
    /// `[1, n]` values.
    pub value: Tensor,
    /// `[1, n]` values as a GPU's products take them, bf16, when `value` is f32 there: what modules hold.
    pub copy: Option<Tensor>,
    /// `[1, n]` gradients of a model that is trained.
    pub grad: Option<Tensor>,
}

/// All weights of a model.
#[derive(Clone, Debug)]
pub struct Weights {
    declared: Vec<Declared>,
    place: HashMap<String, usize>,
    /// Element offset of each declared weight in its flat buffer.
    offsets: Vec<usize>,
    /// All matrices.
    pub matrices: Flat,
    /// All vectors; always f32.
    pub vectors: Flat,
    /// Matrices that lie elsewhere (in a mapped file), one for each declared matrix; `matrices` is then empty.
    mapped: Option<Vec<Option<Tensor>>>,
}

impl Weights {
    /// Memory for `declared`, matrices of `dtype`, unspecified values; with gradients (zero) when `train`.
    pub fn allocate(arena: &Arena, declared: Vec<Declared>, dtype: DType, train: bool) -> Self {
        Self::laid_out(arena, declared, dtype, train, None)
    }

    /// Weights that are only read: `matrix` gives the tensor of each declared matrix, where it lies; vectors are to be
    /// filled in.
    ///
    /// # Errors
    /// The first error of `matrix`.
    pub fn map<E>(
        arena: &Arena,
        declared: Vec<Declared>,
        mut matrix: impl FnMut(&Declared) -> Result<Tensor, E>,
    ) -> Result<Self, E> {
        let mut mapped = Vec::with_capacity(declared.len());
        for weight in &declared {
            mapped.push(if weight.is_matrix() { Some(matrix(weight)?) } else { None });
        }
        Ok(Self::laid_out(arena, declared, DType::F32, false, Some(mapped)))
    }

    /// Gives every weight that is not `mapped` its place in a flat buffer.
    fn laid_out(
        arena: &Arena,
        declared: Vec<Declared>,
        dtype: DType,
        train: bool,
        mapped: Option<Vec<Option<Tensor>>>,
    ) -> Self {
        let (mut vectors, mut matrices) = (0, 0);
        let mut offsets = Vec::with_capacity(declared.len());
        for weight in &declared {
            let size = if weight.is_matrix() { &mut matrices } else { &mut vectors };
            offsets.push(*size);
            *size += if weight.is_matrix() && mapped.is_some() { 0 } else { weight.len() };
        }
        let copied = arena.device() != Device::Cpu && dtype == DType::F32;
        let flat = |size, dtype, copied: bool| Flat {
            value: arena.tensor(1, size, dtype),
            copy: copied.then(|| arena.tensor(1, size, DType::Bf16)),
            grad: train.then(|| arena.zeros(1, size, DType::F32)),
        };
        let place = declared.iter().enumerate().map(|(i, weight)| (weight.name.clone(), i)).collect();
        let (matrices, vectors) = (flat(matrices, dtype, copied), flat(vectors, DType::F32, false));
        Self { declared, place, offsets, matrices, vectors, mapped }
    }

    /// Gives every weight its initial value; the same seed gives the same values on every machine.
    pub fn initialise(&self, seed: u64) {
        for (stream, weight) in self.declared.iter().enumerate() {
            let mut value = self.at(stream).value;
            match weight.init {
                Init::Zeros => value.fill_zero(),
                Init::Ones => value.write(&vec![1.0; weight.len()]),
                Init::Normal { std } => {
                    // A stream per weight: adding a weight changes no other one.
                    let mut rng = rand_pcg::Pcg64Mcg::new(u128::from(seed) << 64 | (stream as u128) << 1 | 1);
                    let mut draw = || -> f32 { StandardNormal.sample(&mut rng) };
                    let values: Vec<f32> = (0..weight.len()).map(|_| std * draw()).collect();
                    value.write(&values);
                }
            }
        }
    }

    /// Brings the copies that products use to the values, which were written by others than an optimizer.
    pub fn refresh(&self) {
        for flat in [&self.matrices, &self.vectors] {
            if let Some(copy) = &flat.copy {
                cast::copy(&flat.value, &mut copy.clone());
            }
        }
    }

    /// The same weights, without gradients, in the memory of `arena`.
    pub fn copied_to(&self, arena: &Arena) -> Self {
        let flat = |flat: &Flat| Flat { value: flat.value.copied_to(arena), copy: None, grad: None };
        let mapped = self.mapped.as_ref().map(|mapped| {
            mapped.iter().map(|tensor| tensor.as_ref().map(|tensor| tensor.copied_to(arena))).collect()
        });
        Self { matrices: flat(&self.matrices), vectors: flat(&self.vectors), mapped, ..self.clone() }
    }

    /// The declared weights in order.
    pub fn declared(&self) -> &[Declared] {
        &self.declared
    }

    /// Number of parameters.
    pub fn count(&self) -> usize {
        self.declared.iter().map(Declared::len).sum()
    }

    /// The weight `name`, in the form that is computed with.
    pub fn get(&self, name: &str) -> Result<Param, WeightError> {
        let index = self.place.get(name).ok_or_else(|| WeightError::Unknown(name.to_owned()))?;
        let param = self.at(*index);
        let weight = &self.declared[*index];
        let flat = if weight.is_matrix() { &self.matrices } else { &self.vectors };
        Ok(match &flat.copy {
            None => param,
            Some(copy) => {
                let (rows, cols) = (param.value.rows(), param.value.cols());
                Param { value: copy.columns(self.offsets[*index], rows * cols).reshape(rows, cols), ..param }
            }
        })
    }

    /// Each weight as it is stored and optimized, with its declaration.
    pub fn iter(&self) -> impl Iterator<Item = (&Declared, Param)> {
        self.declared.iter().enumerate().map(|(i, declared)| (declared, self.at(i)))
    }

    /// Sets all gradients to zero.
    pub fn zero_grad(&mut self) {
        for grad in [&mut self.matrices.grad, &mut self.vectors.grad].into_iter().flatten() {
            grad.fill_zero();
        }
    }

    /// The weights whose names begin with `prefix`.
    pub fn scope(&self, prefix: impl Into<String>) -> Scope<'_> {
        Scope { weights: self, prefix: prefix.into() }
    }

    fn at(&self, index: usize) -> Param {
        let weight = &self.declared[index];
        if let Some(Some(value)) = self.mapped.as_ref().map(|mapped| mapped[index].clone()) {
            return Param { value, grad: None };
        }
        let (rows, cols) =
            if weight.is_matrix() { (weight.shape[0], weight.shape[1]) } else { (1, weight.len()) };
        self.view(weight.is_matrix(), self.offsets[index], rows, cols)
    }

    fn view(&self, matrix: bool, offset: usize, rows: usize, cols: usize) -> Param {
        let flat = if matrix { &self.matrices } else { &self.vectors };
        let view = |tensor: &Tensor| tensor.columns(offset, rows * cols).reshape(rows, cols);
        Param { value: view(&flat.value), grad: flat.grad.as_ref().map(view) }
    }
}

/// Weights under a prefix, as a module looks them up.
#[derive(Clone, Debug)]
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl Scope<'_> {
    /// The weight `name` under this prefix.
    pub fn get(&self, name: &str) -> Result<Param, WeightError> {
        self.weights.get(&format!("{}{name}", self.prefix))
    }

    /// Matrices that read the same input, as one projection.
    pub fn project(&self, names: &[&str]) -> Result<Projection, WeightError> {
        let parts = names.iter().map(|name| self.get(name)).collect::<Result<_, _>>()?;
        Projection::new(parts, None)
    }

    /// As [`Scope::project`], with a bias for each.
    pub fn project_biased(&self, names: &[&str], biases: &[&str]) -> Result<Projection, WeightError> {
        let parts = names.iter().map(|name| self.get(name)).collect::<Result<_, _>>()?;
        Projection::new(parts, Some(biases.iter().map(|name| self.get(name)).collect::<Result<_, _>>()?))
    }

    /// A narrower scope.
    pub fn under(&self, prefix: &str) -> Self {
        Self { weights: self.weights, prefix: format!("{}{prefix}", self.prefix) }
    }
}

#[cfg(test)]
mod tests;
