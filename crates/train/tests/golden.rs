//! Fifty updates against PyTorch's loss curves (`fixtures/golden`): model, gradients, clipping and AdamW together.

// Clippy takes only functions with #[test] for tests; here all is.
#![allow(clippy::unwrap_used)]

use keyfold_core::DType;
use keyfold_model::{LanguageModel, ModelConfig, Sequences, weights::Weights};
use keyfold_ops::adamw::Clip;
use keyfold_ops::gemm::{Precision, set_precision};
use keyfold_tensor::Arena;
use keyfold_train::{config::OptimizerConfig, optimizer::Optimizer};
use safetensors::SafeTensors;
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct Settings {
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    clip: f64,
    batch: usize,
    seq: usize,
    steps: usize,
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Largest differences of losses and, relative, of gradient norms.
fn deviation(name: &str) -> (f64, f64) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/golden").join(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let config: ModelConfig = serde_json::from_str(&metadata["config"]).unwrap();
    let settings: Settings = serde_json::from_str(&metadata["train"]).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();

    let arena = Arena::poisoned();
    let weights = Weights::allocate(&arena, config.declare().unwrap(), DType::F32, true);
    for (declared, mut param) in weights.iter() {
        param.value.write(&floats(&file, &format!("weight.{}", declared.name)));
    }
    let mut model = LanguageModel::with_weights(&config, weights, &arena).unwrap();
    let Settings { betas, eps, weight_decay, .. } = settings;
    let mut optimizer =
        Optimizer::new(OptimizerConfig::Adamw { betas, eps, weight_decay }, model.weights(), &arena);

    let tokens = file.tensor("tokens").unwrap();
    assert_eq!(tokens.shape(), [settings.steps, settings.batch, settings.seq + 1]);
    let tokens: Vec<u32> =
        tokens.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    let (losses, norms) = (floats(&file, "loss"), floats(&file, "grad_norm"));
    let sequences = Sequences::new(settings.batch, settings.seq);
    let (mut loss_error, mut norm_error) = (0f64, 0f64);
    for (step, batch) in tokens.chunks_exact(settings.batch * (settings.seq + 1)).enumerate() {
        let rows = || batch.chunks_exact(settings.seq + 1);
        let inputs: Vec<u32> = rows().flat_map(|row| &row[..settings.seq]).copied().collect();
        let targets: Vec<u32> = rows().flat_map(|row| &row[1..]).copied().collect();
        model.weights_mut().zero_grad();
        let loss = model.forward_backward(&inputs, &targets, &sequences, 1.0 / inputs.len() as f32).read();
        let norm = Optimizer::grad_norm(model.weights());
        let clip = Clip { norm: &norm, max: settings.clip };
        optimizer.update(model.weights_mut(), step as u64 + 1, settings.lr, Some(clip));
        let norm = norm.read();
        loss_error = loss_error.max((loss.mean() - f64::from(losses[step])).abs());
        norm_error = norm_error.max((norm / f64::from(norms[step]) - 1.0).abs());
        assert!(loss_error.is_finite() && norm_error.is_finite(), "{name}, step {}", step + 1);
    }
    println!("{name}: losses within {loss_error:.1e}, gradient norms within {norm_error:.1e}");
    (loss_error, norm_error)
}

#[test]
fn the_loss_curves_are_those_of_pytorch() {
    // What the command line trains with, and plain f32 last; one test, because the precision is the process's.
    for (precision, most) in [(Precision::High, [1e-3, 1e-2]), (Precision::Highest, [1e-4, 1e-3])] {
        set_precision(precision);
        for name in ["mha.safetensors", "mfa.safetensors"] {
            let (loss, norm) = deviation(name);
            assert!(loss < most[0], "{name}, {precision:?}: losses differ by {loss:.2e}");
            assert!(norm < most[1], "{name}, {precision:?}: gradient norms differ by {norm:.2e}");
        }
    }
}
