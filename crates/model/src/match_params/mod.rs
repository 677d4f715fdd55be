//! Models of equal size: what a fair comparison of attention designs needs.

use crate::{attention::AttentionConfig, config::ModelConfig, error::ConfigError};

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

/// MLP widths are multiples of this.
const WIDTH_STEP: usize = 8;

/// The model like `reference` but with `attention`, of as nearly the same number of parameters as possible: heads are
/// chosen so that the attention is as large as the reference's, then the MLP's width takes up what is left.
///
/// # Errors
/// When no such model lies within `tolerance` (0.01 is one percent).
pub fn match_params(
    reference: &ModelConfig,
    attention: &AttentionConfig,
    tolerance: f64,
) -> Result<MatchedModel, ConfigError> {
    let target = reference.parameters()?;
    let wanted = attention_parameters(reference, &reference.attention)?;
    let size = |heads: usize| attention_parameters(reference, &attention.with_heads(heads));
    let mut best = (1, size(1)?);
    // Parameters grow with the number of heads, so the distance falls and then rises.
    for heads in 2..=reference.hidden_size.max(1) {
        let parameters = size(heads)?;
        if parameters.abs_diff(wanted) > best.1.abs_diff(wanted) {
            break;
        }
        best = (heads, parameters);
    }
    let mut config = ModelConfig { attention: attention.with_heads(best.0), ..reference.clone() };
    config.intermediate_size = 0;
    let rest = config.parameters()?;
    let per_width = 3 * config.hidden_size * config.num_hidden_layers;
    let width = target.saturating_sub(rest) as f64 / per_width as f64;
    config.intermediate_size = ((width / WIDTH_STEP as f64).round() as usize).max(1) * WIDTH_STEP;
    config.validate()?;
    let parameters = config.parameters()?;
    let deviation = parameters as f64 / target as f64 - 1.0;
    if deviation.abs() > tolerance {
        return Err(ConfigError::NoMatch {
            kind: attention.kind().to_owned(),
            target,
            nearest: parameters,
            tolerance: 100.0 * tolerance,
        });
    }
    Ok(MatchedModel { config, parameters, deviation })
}

/// Parameters of one layer's attention.
fn attention_parameters(model: &ModelConfig, attention: &AttentionConfig) -> Result<usize, ConfigError> {
    let mut list = crate::weights::Declarations::new(model.init);
    attention.design().declare(model.hidden_size, model.num_hidden_layers, &mut list)?;
    Ok(list.finish().iter().map(crate::weights::Declared::len).sum())
}

#[cfg(test)]
mod tests;
