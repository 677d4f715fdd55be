//! Where a model's weights are in a checkpoint of a family.

/// How a family names and stores weights.
#[derive(Clone, Copy)]
pub struct Names {
    /// What norm gains are stored less.
    pub gain_offset: f32,
    /// Whether checkpoints hold layers beyond the last, which predict further tokens.
    pub further_layers: bool,
    /// The place of the weight with this name.
    pub place: fn(&str) -> Place,
}

/// Where a weight is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the tensor in the file.
    pub tensor: String,
    /// Index along the tensor's first dimension, where one tensor stacks the weights of all experts.
    pub slice: Option<usize>,
}

impl Names {
    /// Weights are stored one by one under their own names.
    pub(super) const PLAIN: Self = Self {
        gain_offset: 0.0,
        further_layers: false,
        place: |name| Place { tensor: name.to_owned(), slice: None },
    };
}
