//! The list of a model's weights: name, shape, initialisation, part.

use crate::error::ConfigError;

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
    /// What it is for.
    pub part: Part,
}

/// What a weight is for, as sizes are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The table of token embeddings.
    Embedding,
    /// Attention.
    Attention,
    /// Dense MLPs.
    Mlp,
    /// Routed experts.
    Experts,
    /// Experts that every token passes.
    SharedExperts,
    /// Routers of experts.
    Router,
    /// Norms of the residual stream.
    Norms,
    /// The output head, unless it is the embedding.
    Head,
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
    part: Part,
    list: Vec<Declared>,
    elements: usize,
    init: InitConfig,
}

/// Largest model: 16 times the largest published one.
const MAX_ELEMENTS: usize = 1 << 44;
/// Most weights: 10 times those of the largest published mixtures of experts. Each takes memory before anything is known
/// of the machine.
const MAX_WEIGHTS: usize = 1 << 20;

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
        Self { prefix: String::new(), part: Part::Norms, list: Vec::new(), elements: 0, init }
    }

    /// Declares what `declare` adds as belonging to `part`.
    pub(crate) fn part(
        &mut self,
        part: Part,
        declare: impl FnOnce(&mut Self) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        let outer = std::mem::replace(&mut self.part, part);
        let result = declare(self);
        self.part = outer;
        result
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
        if self.list.len() == MAX_WEIGHTS {
            return Err(ConfigError::Overflow { what: format!("more than {MAX_WEIGHTS} weights") });
        }
        self.list.push(Declared { name, shape, init, part: self.part });
        Ok(())
    }

    /// The list.
    pub(crate) fn finish(self) -> Vec<Declared> {
        self.list
    }
}
