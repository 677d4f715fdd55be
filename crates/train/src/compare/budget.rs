//! How long the variants of a comparison train: all for the same number of updates.

use super::CompareError;
use crate::{
    config::RunConfig,
    trainer::{TrainError, Trainer},
};
use keyfold_data::Dataset;
use keyfold_model::ModelConfig;
use keyfold_tensor::{Arena, Device};
use std::time::Instant;

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// This many updates of each variant.
    Steps(u64),
    /// As many updates of each variant as fit into these minutes for the whole comparison.
    Minutes(f64),
}

/// Updates that are timed, after one that is not.
const TIMED: u32 = 2;
/// The part of the time that training may take; the rest is for validation, decoding and plots.
const TRAINING_SHARE: f64 = 0.85;

impl Budget {
    /// Updates of each variant, and the data as it was. A budget of minutes is measured: a few updates of every model,
    /// on data that is then taken back.
    pub(super) fn steps(
        self,
        base: &RunConfig,
        models: &[ModelConfig],
        mut data: Dataset,
        device: Device,
    ) -> Result<(u64, Dataset), CompareError> {
        let minutes = match self {
            Self::Steps(steps) => return Ok((steps.max(1), data)),
            Self::Minutes(minutes) => minutes,
        };
        let begin = Instant::now();
        let start = data.state();
        let mut seconds = 0.0;
        for model in models {
            let config = RunConfig { model: model.clone(), ..base.clone() };
            let mut trainer = Trainer::new(config, data, &Arena::on(device).map_err(TrainError::from)?)?;
            trainer.step()?;
            let timed = Instant::now();
            for _ in 0..TIMED {
                trainer.step()?;
            }
            seconds += timed.elapsed().as_secs_f64() / f64::from(TIMED);
            data = trainer.into_data();
            data.restore(&start)?;
        }
        let left = 60.0 * minutes * TRAINING_SHARE - begin.elapsed().as_secs_f64();
        Ok(((left / seconds).max(1.0) as u64, data))
    }
}
