//! `keyfold selftest`: a device's kernels against the host's.

mod decoding;
mod serving;

use super::print_line;
use keyfold_core::DType;
use keyfold_model::{
    LanguageModel, LocalConfig, ModelConfig, Sequences,
    attention::{AttentionConfig, DESIGNS, Scale},
    position::Position,
};
use keyfold_ops::{
    adamw::Clip,
    sample::Rng,
    selftest::{self, Extent},
};
use keyfold_tensor::{Arena, Device};
use keyfold_train::{config::OptimizerConfig, optimizer::Optimizer};
use serde_json::json;

/// Largest relative deviation of losses, and of gradients: activations are bf16 on a GPU.
const LIMITS: [f64; 2] = [3e-3, 5e-2];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only the ops whose names contain this.
    #[arg(long, value_name = "NAME", default_value = "")]
    op: String,
    /// Fewer and smaller checks, for tools that make kernels slow, as compute-sanitizer does.
    #[arg(long)]
    small: bool,
    /// Attention over pages by blocks that see no other's shared memory, for tools that cannot follow what clusters of blocks send
    /// each other, as compute-sanitizer's racecheck cannot.
    #[arg(long)]
    lone_blocks: bool,
    /// Print every check, not only those that fail.
    #[arg(long)]
    verbose: bool,
}

pub(crate) fn run(args: &Args, device: Device) -> anyhow::Result<()> {
    anyhow::ensure!(
        selftest::names().iter().any(|name| name.contains(&args.op)),
        "--op {}: expected a part of one of {}",
        args.op,
        selftest::names().join(", ")
    );
    anyhow::ensure!(
        device != Device::Cpu,
        "selftest compares a device with the host: name one, with --device cuda"
    );
    device.open()?;
    print_line(format_args!("{device}: {}", device.describe()))?;
    let (mut ops, mut failed) = (Vec::<(&str, usize, usize, f64)>::new(), 0);
    let mut wrong = Ok(());
    let extent = Extent { small: args.small, lone_blocks: args.lone_blocks };
    selftest::run(device, &args.op, extent, &mut |check| {
        if ops.last().is_none_or(|(op, ..)| *op != check.op) {
            ops.push((check.op, 0, 0, 0.0));
        }
        if let Some((_, all, bad, worst)) = ops.last_mut() {
            *all += 1;
            *bad += usize::from(check.failure.is_some());
            *worst = worst.max(check.error / check.limit.max(f64::MIN_POSITIVE));
        }
        failed += usize::from(check.failure.is_some());
        if wrong.is_ok() && (args.verbose || check.failure.is_some()) {
            wrong = print_line(check);
        }
    })?;
    wrong?;
    if args.op.is_empty() && !args.small {
        failed += designs(device)?;
        failed += usize::from(!serving::check(device)?);
    }
    for (op, all, bad, worst) in &ops {
        print_line(format_args!(
            "{op:16} {all:5} checks, {bad} failed, largest error {worst:.2} of its limit"
        ))?;
    }
    anyhow::ensure!(failed == 0, "{failed} checks failed on {device}");
    print_line("all checks passed")
}

/// A small model of a design.
fn model(kind: &str, scale: &Scale) -> anyhow::Result<ModelConfig> {
    let Some(attention) = AttentionConfig::preset(kind, scale) else {
        anyhow::bail!("{kind}: no preset");
    };
    Ok(serde_json::from_value(json!({
        "vocab_size": 300, "hidden_size": scale.hidden, "num_hidden_layers": 2, "intermediate_size": 200,
        "max_position_embeddings": 130, "attention": attention,
    }))?)
}

/// Two updates of a small model of every design, and decoding with it, on the host and on `device`; how much of that differs
/// too much.
fn designs(device: Device) -> anyhow::Result<usize> {
    let mut failed = 0;
    let scale = Scale::new(128, 64);
    // Of two layers one, so that a step has two shapes of attention.
    let local = LocalConfig { window: 20, layers: vec![0], rope_theta: None };
    for (kind, _) in DESIGNS {
        let config = model(kind, &scale)?;
        let bf16 = |name: &str, config: &ModelConfig| decoding::check(name, config, device, DType::Bf16);
        let mut decodes = bf16(kind, &config)?;
        if config.attention.windowed(&local).is_some() {
            let config = ModelConfig { local: Some(local.clone()), ..config.clone() };
            decodes &= bf16(&format!("{kind}, window"), &config)?;
        }
        let slopes = Scale { position: Position::Alibi, ..scale };
        if let Some(attention) = AttentionConfig::preset(kind, &slopes) {
            let config = ModelConfig { attention, ..config.clone() };
            decodes &= bf16(&format!("{kind}, ALiBi"), &config)?;
        }
        // In planes that are whole blocks.
        decodes &= decoding::check(kind, &model(kind, &Scale::new(512, 128))?, device, DType::Fp8)?;
        let [host, other] = [steps(&config, &Arena::new())?, steps(&config, &Arena::on(device)?)?];
        let loss = host.0.iter().zip(&other.0).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
        let square = |x: f64| x * x;
        let difference: f64 = host.1.iter().zip(&other.1).map(|(a, b)| square(f64::from(a - b))).sum();
        let norm: f64 = host.1.iter().map(|a| square(f64::from(*a))).sum();
        let errors = [loss, (difference / norm).sqrt()];
        let good = errors.iter().zip(LIMITS).all(|(error, limit)| *error <= limit);
        failed += usize::from(!good) + usize::from(!decodes);
        let verdict = if good { "" } else { ": too far apart" };
        print_line(format_args!(
            "{kind:16} two updates: losses within {:.1e}, gradients within {:.1e}{verdict}",
            errors[0], errors[1]
        ))?;
    }
    Ok(failed)
}

/// The losses before two updates and after them, and all gradients of the first.
fn steps(config: &ModelConfig, arena: &Arena) -> anyhow::Result<(Vec<f64>, Vec<f32>)> {
    const ROWS: usize = 3;
    const SEQ: usize = 65;
    let mut model = LanguageModel::new(config, 1, arena)?;
    let mut optimizer = Optimizer::new(OptimizerConfig::default(), model.weights(), arena);
    let tokens = ROWS * SEQ;
    let mut rng = Rng::new(7);
    let ids: Vec<u32> = (0..=tokens).map(|_| (rng.uniform() * config.vocab_size as f64) as u32).collect();
    // Documents of 20 tokens.
    let starts = (0..tokens).map(|token| (token % SEQ / 20 * 20) as u32);
    let sequences = Sequences { doc_starts: Some(starts.collect()), ..Sequences::new(ROWS, SEQ) };
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for step in 1..=3 {
        model.weights_mut().zero_grad();
        let scale = 1.0 / tokens as f32;
        let loss = model.forward_backward(&ids[..tokens], &ids[1..], &sequences, scale);
        let norm = Optimizer::grad_norm(model.weights());
        optimizer.update(model.weights_mut(), step, 1e-3, Some(Clip { norm: &norm, max: 1.0 }));
        losses.push(loss.read().mean());
        if step == 1 {
            let weights = model.weights();
            let grads = [&weights.matrices, &weights.vectors].map(|flat| flat.grad.as_ref());
            gradients = grads.into_iter().flatten().flat_map(|grad| grad.to_vec()).collect();
        }
    }
    Ok((losses, gradients))
}
