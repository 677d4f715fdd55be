//! Options on how tokens are chosen, shared by the commands that write text.

use crate::model_dir::generation::Defaults;
use keyfold_ops::sample::{Repetition, SampleError, Sampler};

/// Where neither the command line nor the model says otherwise.
const TEMPERATURE: f32 = 0.8;

#[derive(Debug, clap::Args)]
pub(super) struct SamplingArgs {
    /// 0 always takes the likeliest token [default: the model's generation_config.json, or 0.8].
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Keep the smallest set of likeliest tokens with this probability [default: the model's, or 1].
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Keep this many of the likeliest tokens [default: the model's, or all].
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Keep tokens at least this fraction as likely as the likeliest one [default: the model's, or 0].
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Divide the logits of tokens that came before by this, or multiply those below zero [default: the model's, or 1].
    #[arg(long, value_name = "P")]
    repetition_penalty: Option<f32>,
    /// Seed of the choices.
    #[arg(long, default_value_t = 0, value_name = "S")]
    pub(super) seed: u64,
}

impl SamplingArgs {
    /// Checks what was given before anything is read.
    pub(super) fn validate(&self) -> Result<(), SampleError> {
        self.sampler(&Defaults::default())?;
        self.repetition_penalty(&Defaults::default()).map(drop)
    }

    /// What was given, and the model's wishes for the rest.
    pub(super) fn sampler(&self, defaults: &Defaults) -> Result<Sampler, SampleError> {
        let sampler = Sampler {
            temperature: self.temperature.or(defaults.temperature).unwrap_or(TEMPERATURE),
            top_k: self.top_k.or(defaults.top_k),
            top_p: self.top_p.or(defaults.top_p).unwrap_or(1.0),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(0.0),
        };
        sampler.validate().map(|()| sampler)
    }

    /// The penalty that was given, or the model's.
    pub(super) fn repetition_penalty(&self, defaults: &Defaults) -> Result<f32, SampleError> {
        let penalty = self.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0);
        Repetition::new(penalty).map(|_| penalty)
    }
}
