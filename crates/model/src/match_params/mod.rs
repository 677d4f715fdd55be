//! Models of equal size: what a fair comparison of attention designs needs.

use crate::{attention::AttentionConfig, config::ModelConfig, error::ConfigError, weights::Part};

/// A model matched to a number of parameters.
#[derive(Clone, Debug)]
pub struct MatchedModel {
    /// The model.
    pub config: ModelConfig,
    /// Its parameters.
    pub parameters: usize,
    /// Relative deviation from the target, signed.
    pub deviation: f64,
}

/// Widths are multiples of this.
const WIDTH_STEP: usize = 8;

/// The model like `reference` but with `attention`, of as nearly the same number of parameters as possible: heads are
/// chosen so that the attention is as large as the reference's, then the MLP's width takes up what is left, or the
/// experts' width where the model has experts.
///
/// # Errors
/// When no such model lies within `tolerance` (0.01 is one percent).
pub fn match_params(
    reference: &ModelConfig,
    attention: &AttentionConfig,
    tolerance: f64,
) -> Result<MatchedModel, ConfigError> {
    let matcher = Matcher::new(reference)?;
    matcher.finish(&matcher.with_matching_heads(attention)?, tolerance)
}

/// What matching many attentions to one model needs to be told once.
#[derive(Clone, Debug)]
pub struct Matcher<'a> {
    reference: &'a ModelConfig,
    target: usize,
    /// Parameters of the attention of all layers.
    attention: usize,
    /// Parameters of a unit of the width that gives way, and that width.
    per_width: usize,
    width: usize,
}

impl<'a> Matcher<'a> {
    /// Matches to `reference`.
    ///
    /// # Errors
    /// When the reference is no model.
    pub fn new(reference: &'a ModelConfig) -> Result<Self, ConfigError> {
        let mut sums = [0usize; 4];
        for weight in reference.declare()? {
            let part = match weight.part {
                Part::Attention => 1,
                Part::Mlp => 2,
                Part::Experts => 3,
                Part::SharedExperts if follows(reference) => 3,
                _ => 0,
            };
            sums[part] += weight.len();
        }
        let [rest, attention, mlp, experts] = sums;
        let (sum, width) = match &reference.moe {
            Some(moe) if experts > 0 => (experts, moe.expert_size),
            _ => (mlp, reference.intermediate_size),
        };
        // Gate, up and down projections are all proportional to the width.
        let per_width = (sum / width.max(1)).max(1);
        Ok(Self { reference, target: rest + attention + mlp + experts, attention, per_width, width })
    }

    /// Parameters of the reference.
    pub fn target(&self) -> usize {
        self.target
    }

    /// Parameters of the reference's attention, all layers.
    pub fn attention(&self) -> usize {
        self.attention
    }

    /// `attention` with the number of heads that makes it as nearly as large as the reference's as possible.
    ///
    /// # Errors
    /// When its sizes overflow.
    pub fn with_matching_heads(&self, attention: &AttentionConfig) -> Result<AttentionConfig, ConfigError> {
        let wanted = self.attention / self.reference.num_hidden_layers.max(1);
        let size = |heads: usize| self.layer(&attention.with_heads(heads));
        let mut best = (1, size(1)?);
        // Parameters grow with the number of heads, so the distance falls and then rises.
        for heads in 2..=self.reference.hidden_size.max(1) {
            let parameters = size(heads)?;
            if parameters.abs_diff(wanted) > best.1.abs_diff(wanted) {
                break;
            }
            best = (heads, parameters);
        }
        Ok(attention.with_heads(best.0))
    }

    /// Parameters of one layer of `attention`.
    ///
    /// # Errors
    /// When its sizes overflow.
    pub fn layer(&self, attention: &AttentionConfig) -> Result<usize, ConfigError> {
        let (hidden, layers) = (self.reference.hidden_size, self.reference.num_hidden_layers);
        let mut list = crate::weights::Declarations::new(self.reference.init);
        attention.design().declare(hidden, layers, &mut list)?;
        Ok(list.finish().iter().map(crate::weights::Declared::len).sum())
    }

    /// The model with `attention` as it is, whose MLP's or experts' width takes up what is left of the parameters.
    ///
    /// # Errors
    /// When no such model lies within `tolerance`.
    pub fn finish(&self, attention: &AttentionConfig, tolerance: f64) -> Result<MatchedModel, ConfigError> {
        let no_match = |nearest: usize| ConfigError::NoMatch {
            kind: attention.kind().to_owned(),
            target: self.target,
            nearest,
            tolerance: 100.0 * tolerance,
        };
        let layers = self.reference.num_hidden_layers;
        let own = self.layer(attention)?.checked_mul(layers).filter(|own| *own <= usize::MAX / 2);
        let own = own.ok_or_else(|| ConfigError::Overflow { what: "the attention of all layers".into() })?;
        let rest = self.target - self.attention - self.per_width * self.width + own;
        let width = self.target.saturating_sub(rest) as f64 / self.per_width as f64;
        // Where a step of the width is a large part of a model (many experts), single units are tried.
        let steps = [WIDTH_STEP, 1].map(|step| ((width / step as f64).round() as usize).max(1) * step);
        let parameters = |width: usize| rest + self.per_width * width;
        let deviation = |width: usize| parameters(width) as f64 / self.target as f64 - 1.0;
        let width = if deviation(steps[0]).abs() <= tolerance { steps[0] } else { steps[1] };
        if deviation(width).abs() > tolerance {
            return Err(no_match(parameters(width)));
        }
        let config = self.with_width(attention, width);
        config.validate()?;
        let parameters = config.parameters()?;
        let deviation = parameters as f64 / self.target as f64 - 1.0;
        if deviation.abs() > tolerance {
            return Err(no_match(parameters));
        }
        Ok(MatchedModel { config, parameters, deviation })
    }

    fn with_width(&self, attention: &AttentionConfig, width: usize) -> ModelConfig {
        let mut config = ModelConfig { attention: attention.clone(), ..self.reference.clone() };
        match &mut config.moe {
            Some(moe) if moe.dense_layers.len() < config.num_hidden_layers => {
                if follows(self.reference) {
                    moe.shared_size = moe.shared_size / moe.expert_size * width;
                }
                moe.expert_size = width;
            }
            _ => config.intermediate_size = width,
        }
        config
    }
}

/// Whether the shared expert is a multiple of a routed one, and remains so.
fn follows(config: &ModelConfig) -> bool {
    config
        .moe
        .as_ref()
        .is_some_and(|moe| moe.expert_size > 0 && moe.shared_size.is_multiple_of(moe.expert_size))
}

#[cfg(test)]
mod tests;
