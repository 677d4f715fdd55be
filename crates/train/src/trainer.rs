//! One training run in memory: model, optimizer, data and counters.

use crate::{config::RunConfig, evaluate::evaluate, optimizer::Optimizer};
use keyfold_core::units;
use keyfold_data::{Batch, DataError, Dataset, SamplerState};
use keyfold_model::{
    LanguageModel, ModelError, Sequences, TapeOptions,
    tape::{Culprit, Loss, Watch},
};
use keyfold_ops::adamw::Clip;
use keyfold_ops::sample::SampleError;
use keyfold_tensor::{Arena, Device, DeviceError, catch};

/// A run in progress.
pub struct Trainer {
    pub(crate) config: RunConfig,
    pub(crate) model: LanguageModel,
    pub(crate) optimizer: Optimizer,
    pub(crate) data: Dataset,
    pub(crate) step: u64,
    pub(crate) tokens: u64,
    ahead: Option<Ahead>,
}

/// The batches of the next update, drawn while a device computes, and where the data was before.
struct Ahead {
    batches: Result<Vec<Batch>, DataError>,
    before: SamplerState,
}

/// What one update did.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Number of the update, from 1.
    pub step: u64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Training loss before the update, nats per token.
    pub loss: f64,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
}

/// What a validation found.
#[derive(Clone, Copy, Debug)]
pub struct Evaluation {
    /// Nats per token.
    pub loss: f64,
    /// Bits per byte of text.
    pub bits_per_byte: f64,
    /// The part of recall questions answered rightly; `None` for data without them.
    pub recall_accuracy: Option<f64>,
    /// Tokens scored.
    pub tokens: u64,
}

/// Why a run cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model cannot be made.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Nothing can be drawn from the model's logits.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The model does not fit into memory.
    #[error("training {parameters} parameters takes {} for weights, gradients and moments alone: {} are free", units::bytes(*needed), units::bytes(*available))]
    Memory {
        /// Parameters.
        parameters: usize,
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
    /// The loss or the gradient is not finite: weights would be lost.
    #[error("step {step}: the {what} is {value}; {}; the weights are those of step {}: lower train.lr or raise warm-up", told(*culprit), step - 1)]
    NotFinite {
        /// The update that was not made.
        step: u64,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The first op whose result was not finite when the step was run again.
        culprit: Option<Culprit>,
    },
}

fn told(culprit: Option<Culprit>) -> String {
    match culprit {
        Some(culprit) => format!("first in {culprit}"),
        None => "run again, every op's results were finite".to_owned(),
    }
}

/// Bytes per parameter: weight, gradient and two moments, f32; a GPU keeps the weight in bf16 as well.
const BYTES_PER_PARAMETER: [u64; 2] = [16, 18];

/// Fails before the allocator would end the process.
fn check_memory(config: &RunConfig, device: Device) -> Result<(), TrainError> {
    let parameters = config.model.parameters().map_err(ModelError::from)?;
    let needed = (parameters as u64).saturating_mul(BYTES_PER_PARAMETER[usize::from(device != Device::Cpu)]);
    match device.available_memory() {
        Some(available) if needed > available => Err(TrainError::Memory { parameters, needed, available }),
        _ => Ok(()),
    }
}

impl Trainer {
    /// A new run: initial weights, data from its start.
    ///
    /// # Errors
    /// When the configuration makes no model, or one that does not fit into memory.
    pub fn new(config: RunConfig, data: Dataset, arena: &Arena) -> Result<Self, TrainError> {
        check_memory(&config, arena.device())?;
        catch(|| {
            let model = LanguageModel::new(&config.model, config.train.seed, arena)?;
            Ok(Self::with_model(config, model, data))
        })?
    }

    /// A run that begins with given weights.
    pub fn with_model(config: RunConfig, model: LanguageModel, data: Dataset) -> Self {
        let train = &config.train;
        let options = TapeOptions {
            saved_dtype: train.activation_dtype,
            checkpoint_layers: train.activation_checkpointing,
        };
        let optimizer = Optimizer::new(train.optimizer, model.weights(), model.arena());
        Self {
            config,
            model: model.with_tape_options(options),
            optimizer,
            data,
            step: 0,
            tokens: 0,
            ahead: None,
        }
    }

    /// The resolved configuration.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The model.
    pub fn model(&self) -> &LanguageModel {
        &self.model
    }

    /// The data.
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    /// Updates made.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// Tokens trained on.
    pub fn tokens_done(&self) -> u64 {
        self.tokens
    }

    /// Makes one update.
    ///
    /// # Errors
    /// When data cannot be read, or the loss or gradient is not finite; the weights are then those before.
    pub fn step(&mut self) -> Result<StepReport, TrainError> {
        let train = &self.config.train;
        let step = self.step + 1;
        let lr = train.lr * train.schedule.factor(step, train.steps);
        let batches = match self.ahead.take() {
            Some(ahead) => ahead.batches?,
            None => self.draw()?,
        };
        let scored: usize = batches.iter().map(|batch| batch.targets.len()).sum();
        let (loss, grad_norm) = catch(|| self.update(&batches, scored, step, lr))??;
        self.step = step;
        self.tokens += scored as u64;
        Ok(StepReport { step, tokens: self.tokens, loss, grad_norm, lr })
    }

    fn draw(&mut self) -> Result<Vec<Batch>, DataError> {
        let train = &self.config.train;
        (0..train.accumulate).map(|_| self.data.next_batch(train.batch_size)).collect()
    }

    /// Where the data is: its next batch is that of the next update.
    pub(crate) fn data_state(&self) -> SamplerState {
        self.ahead.as_ref().map_or_else(|| self.data.state(), |ahead| ahead.before.clone())
    }

    /// One update from `batches`, whose `scored` targets count: the loss before it, and the gradient's norm.
    fn update(
        &mut self,
        batches: &[Batch],
        scored: usize,
        step: u64,
        lr: f64,
    ) -> Result<(f64, f64), TrainError> {
        self.model.weights_mut().zero_grad();
        let scale = 1.0 / scored as f32;
        let mut losses = Vec::with_capacity(batches.len());
        for batch in batches {
            let sequences = sequences(batch, self.config.data.mask_documents);
            losses.push(self.model.forward_backward(&batch.inputs, &batch.targets, &sequences, scale));
        }
        let norm = Optimizer::grad_norm(self.model.weights());
        let read = || {
            let mut total = Loss::default();
            losses.iter().for_each(|loss| total += loss.read());
            (total.mean(), norm.read())
        };
        let clip = Clip { norm: &norm, max: self.config.train.clip_norm };
        // A device is asked only when it has all its work: waiting before the update would leave it idle. Meanwhile the next
        // batches are drawn.
        let (loss, grad_norm) = if self.model.arena().device() == Device::Cpu {
            let known = read();
            if known.0.is_finite() && known.1.is_finite() {
                self.optimizer.update(self.model.weights_mut(), step, lr, Some(clip));
            }
            known
        } else {
            // Where the norm is not finite this changes nothing.
            self.optimizer.update(self.model.weights_mut(), step, lr, Some(clip));
            let before = self.data.state();
            self.ahead = Some(Ahead { batches: self.draw(), before });
            read()
        };
        for (what, value) in [("loss", loss), ("gradient norm", grad_norm)] {
            if !value.is_finite() {
                let culprit = self.culprit(batches, scale);
                return Err(TrainError::NotFinite { step, what, value, culprit });
            }
        }
        Ok((loss, grad_norm))
    }

    /// Runs a step's passes again and looks at each op's results.
    fn culprit(&mut self, batches: &[Batch], scale: f32) -> Option<Culprit> {
        self.model.weights_mut().zero_grad();
        let weights = self.model.weights();
        let gradients =
            [&weights.matrices, &weights.vectors].into_iter().filter_map(|flat| flat.grad.clone());
        let watch = Watch::new(self.model.arena(), gradients.collect());
        for batch in batches {
            let sequences = sequences(batch, self.config.data.mask_documents);
            let (ids, targets) = (&batch.inputs, &batch.targets);
            self.model.forward_backward_watched(ids, targets, &sequences, scale, &watch);
        }
        watch.culprit()
    }
}

impl Trainer {
    /// Scores the validation split as the configuration says.
    ///
    /// # Errors
    /// When the data cannot be read.
    pub fn evaluate(&self) -> Result<Evaluation, TrainError> {
        self.evaluate_tokens(self.config.train.eval_tokens)
    }

    /// Scores up to `tokens` tokens (0: all) of the validation split.
    ///
    /// # Errors
    /// When the data cannot be read.
    pub fn evaluate_tokens(&self, tokens: u64) -> Result<Evaluation, TrainError> {
        let masked = self.config.data.mask_documents;
        catch(|| evaluate(&self.model, &self.data, self.config.train.batch_size, tokens, masked))?
    }

    /// The data, after the run. Batches may have been drawn ahead.
    pub fn into_data(self) -> Dataset {
        self.data
    }
}

/// How the rows of `batch` are laid out; documents are kept apart when `mask_documents`.
pub(crate) fn sequences(batch: &Batch, mask_documents: bool) -> Sequences {
    let doc_starts = mask_documents.then(|| batch.doc_starts.as_slice().into());
    Sequences { doc_starts, ..Sequences::new(batch.batch, batch.seq_len) }
}
