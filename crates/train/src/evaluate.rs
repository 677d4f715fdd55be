//! Validation: loss per token, bits per byte, and how many recall questions are answered rightly.

use crate::trainer::{Evaluation, TrainError, sequences};
use keyfold_data::{Batch, Dataset};
use keyfold_model::LanguageModel;
use keyfold_ops::cross_entropy::IGNORE;

/// Scores up to `max_tokens` tokens (0: all) of the validation split, `rows` sequences at a time.
///
/// A recall answer counts as right when every one of its tokens is the likeliest one, given the text before it.
///
/// # Errors
/// When the data cannot be read.
pub fn evaluate(
    model: &LanguageModel,
    data: &Dataset,
    rows: usize,
    max_tokens: u64,
    mask_documents: bool,
) -> Result<Evaluation, TrainError> {
    let limit = if max_tokens == 0 { u64::MAX } else { max_tokens };
    let (mut nats, mut tokens, mut bytes) = (0.0, 0u64, 0u64);
    let (mut answers, mut right) = (0usize, 0usize);
    for batch in data.validation(rows, limit) {
        let batch = batch?;
        let mut correct = vec![false; batch.targets.len()];
        let layout = sequences(&batch, mask_documents);
        let loss = model.evaluate(&batch.inputs, &counted(&batch), &layout, Some(&mut correct));
        nats += loss.sum;
        tokens += loss.weight as u64;
        bytes += batch.target_bytes;
        answers += batch.answers.len();
        right += answered(&batch, &correct);
    }
    Ok(Evaluation {
        loss: nats / tokens as f64,
        bits_per_byte: nats / std::f64::consts::LN_2 / bytes as f64,
        recall_accuracy: (answers > 0).then(|| right as f64 / answers as f64),
        tokens,
    })
}

/// The targets of `batch`, those that do not count replaced by [`IGNORE`].
fn counted(batch: &Batch) -> Vec<u32> {
    match &batch.loss_mask {
        None => batch.targets.clone(),
        Some(mask) => batch
            .targets
            .iter()
            .zip(mask)
            .map(|(target, counts)| if *counts { *target } else { IGNORE })
            .collect(),
    }
}

/// Answers of `batch` whose tokens are all `correct`.
fn answered(batch: &Batch, correct: &[bool]) -> usize {
    let mut right = vec![true; batch.answers.len()];
    for (answer, correct) in batch.recall.iter().flatten().zip(correct) {
        if let Some(right) = (*answer as usize).checked_sub(1).and_then(|index| right.get_mut(index)) {
            *right &= *correct;
        }
    }
    right.into_iter().filter(|right| *right).count()
}
