//! Declared weights and the flat memory that holds them.
//!
//! A module declares its weights once: name, shape, initialisation, decay. Initialising, loading, saving, counting and
//! optimizing all read that list. Matrices share one flat buffer and vectors (norm gains, gates) another, in the order
//! of declaration, so that projections declared one after the other are one wider matrix ([`Scope::span`]), an
//! optimizer step is two calls, and the gradient norm is two sums.

use crate::error::{ConfigError, WeightError};
use keyfold_core::DType;
use keyfold_tensor::{Arena, Tensor};
use rand_distr::{Distribution, StandardNormal};
use std::collections::HashMap;

/// How a weight starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Independent normal values of mean 0.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// All one.
    Ones,
    /// All zero.
    Zeros,
}

/// One weight of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// Name in the checkpoint.
    pub name: String,
    /// `[out, in]` of a matrix, `[n]` of a vector.
    pub shape: Vec<usize>,
    /// How it starts.
    pub init: Init,
}

impl Declared {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is a matrix; weight decay applies to matrices alone.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() == 2
    }
}

/// The list of weights that modules declare.
#[derive(Clone, Debug)]
pub struct Declarations {
    prefix: String,
    list: Vec<Declared>,
    elements: usize,
    init: InitConfig,
}

/// Largest model: 16 times the largest published one.
const MAX_ELEMENTS: usize = 1 << 44;

/// Initialisation: `[model.init]`.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InitConfig {
    /// Standard deviation of embedding and output head.
    pub std: f64,
    /// Standard deviation of the layers' matrices; by default the input width to the power -1/2, which keeps the scale
    /// of activations whatever the width: MFA's latents are narrow, and a fixed value would start them near zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection_std: Option<f64>,
    /// Whether the projections into the residual stream (o_proj, down_proj) start at zero; else their standard
    /// deviation is divided by sqrt(2 * layers), as in GPT-2.
    pub zero_output: bool,
}

impl Default for InitConfig {
    fn default() -> Self {
        Self { std: 0.02, projection_std: None, zero_output: false }
    }
}

impl Declarations {
    pub(crate) fn new(init: InitConfig) -> Self {
        Self { prefix: String::new(), list: Vec::new(), elements: 0, init }
    }

    /// Declares what `declare` adds with `prefix` before its names.
    pub(crate) fn scoped(
        &mut self,
        prefix: &str,
        declare: impl FnOnce(&mut Self) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        let outer = self.prefix.len();
        self.prefix.push_str(prefix);
        let result = declare(self);
        self.prefix.truncate(outer);
        result
    }

    /// A table of rows for token ids.
    pub(crate) fn table(&mut self, name: &str, rows: usize, width: usize) -> Result<(), ConfigError> {
        self.push(name, vec![rows, width], Init::Normal { std: self.init.std as f32 })
    }

    /// A projection `[out, in]`.
    pub(crate) fn matrix(&mut self, name: &str, out: usize, width: usize) -> Result<(), ConfigError> {
        self.push(name, vec![out, width], Init::Normal { std: self.projection_std(width) as f32 })
    }

    /// A projection into the residual stream of a model with `layers` layers.
    pub(crate) fn output(
        &mut self,
        name: &str,
        out: usize,
        width: usize,
        layers: usize,
    ) -> Result<(), ConfigError> {
        let std = self.projection_std(width) / (2.0 * layers as f64).sqrt();
        let init = if self.init.zero_output { Init::Zeros } else { Init::Normal { std: std as f32 } };
        self.push(name, vec![out, width], init)
    }

    fn projection_std(&self, width: usize) -> f64 {
        self.init.projection_std.unwrap_or((width as f64).powf(-0.5))
    }

    /// A vector that starts at one (norm gains) or at zero (gates).
    pub(crate) fn vector(&mut self, name: &str, width: usize, init: Init) -> Result<(), ConfigError> {
        self.push(name, vec![width], init)
    }

    fn push(&mut self, name: &str, shape: Vec<usize>, init: Init) -> Result<(), ConfigError> {
        let name = format!("{}{name}", self.prefix);
        let size = shape.iter().try_fold(1usize, |product, n| product.checked_mul(*n));
        self.elements = match size.and_then(|size| size.checked_add(self.elements)) {
            Some(elements) if elements <= MAX_ELEMENTS => elements,
            _ => return Err(ConfigError::Overflow { what: format!("weight `{name}` of shape {shape:?}") }),
        };
        self.list.push(Declared { name, shape, init });
        Ok(())
    }

    /// The list.
    pub(crate) fn finish(self) -> Vec<Declared> {
        self.list
    }
}

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
}

impl Weights {
    /// Memory for `declared`, matrices of `dtype`, unspecified values; with gradients (zero) when `train`.
    pub fn allocate(arena: &Arena, declared: Vec<Declared>, dtype: DType, train: bool) -> Self {
        let mut sizes = [0usize; 2];
        let mut offsets = Vec::with_capacity(declared.len());
        for weight in &declared {
            let size = &mut sizes[usize::from(weight.is_matrix())];
            offsets.push(*size);
            *size += weight.len();
        }
        let flat = |size, dtype| Flat {
            value: arena.tensor(1, size, dtype),
            grad: train.then(|| arena.zeros(1, size, DType::F32)),
        };
        let place = declared.iter().enumerate().map(|(i, weight)| (weight.name.clone(), i)).collect();
        let (matrices, vectors) = (flat(sizes[1], dtype), flat(sizes[0], DType::F32));
        Self { declared, place, offsets, matrices, vectors }
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

    /// The declared weights in order.
    pub fn declared(&self) -> &[Declared] {
        &self.declared
    }

    /// Number of parameters.
    pub fn count(&self) -> usize {
        self.matrices.value.len() + self.vectors.value.len()
    }

    /// The weight `name`.
    pub fn get(&self, name: &str) -> Result<Param, WeightError> {
        self.place.get(name).map(|i| self.at(*i)).ok_or_else(|| WeightError::Unknown(name.to_owned()))
    }

    /// Each weight with its declaration.
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

    /// Matrices declared one after the other as one `[sum of out, in]` matrix: no copy.
    pub fn span(&self, names: &[&str]) -> Result<Param, WeightError> {
        let not_adjacent =
            || WeightError::NotAdjacent(names.iter().map(|name| format!("{}{name}", self.prefix)).collect());
        let mut span: Option<(usize, usize, usize)> = None;
        for name in names {
            let name = format!("{}{name}", self.prefix);
            let index = *self.weights.place.get(&name).ok_or(WeightError::Unknown(name))?;
            let (weight, offset) = (&self.weights.declared[index], self.weights.offsets[index]);
            if !weight.is_matrix() {
                return Err(not_adjacent());
            }
            let (rows, cols) = (weight.shape[0], weight.shape[1]);
            span = match span {
                None => Some((offset, rows, cols)),
                Some((start, before, width)) if width == cols && start + before * cols == offset => {
                    Some((start, before + rows, cols))
                }
                Some(_) => return Err(not_adjacent()),
            };
        }
        let (offset, rows, cols) = span.ok_or_else(not_adjacent)?;
        Ok(self.weights.view(true, offset, rows, cols))
    }

    /// A narrower scope.
    pub fn under(&self, prefix: &str) -> Self {
        Self { weights: self.weights, prefix: format!("{}{prefix}", self.prefix) }
    }
}

#[cfg(test)]
mod tests;
