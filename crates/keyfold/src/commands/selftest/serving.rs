//! A server's batch on a device: tokens that the device draws against those that the host draws from its logits.

use crate::commands::print_line;
use anyhow::Context;
use keyfold_core::DType;
use keyfold_engine::{RequestId, Runner, Sampling, Work};
use keyfold_model::{
    Decoder, ModelConfig,
    attention::{AttentionConfig, Scale},
    weights::Weights,
};
use keyfold_runner::{ModelRunner, SamplerState};
use keyfold_tensor::{Arena, Device};
use serde_json::json;

const PAGE: usize = 16;
/// Tokens before those that are computed, for each request: prompts, then one token each.
const PAST: [usize; 6] = [0, 0, 20, 33, 5, 12];

/// Requests of several kinds; `seen`: with their logits shown to the host.
fn sampling(at: usize, seen: bool) -> Sampling {
    Sampling {
        temperature: [0.0, 0.9, 1.2, 0.7, 0.0, 1.0][at],
        top_k: [None, Some(20), None, None, None, Some(5)][at],
        top_p: [1.0, 1.0, 0.8, 1.0, 1.0, 0.9][at],
        repetition_penalty: [1.0, 1.0, 1.0, 1.3, 1.5, 1.0][at],
        // One that the host must choose for, among the others.
        logit_bias: if at == 2 { vec![(7, 3.0)] } else { Vec::new() },
        logprobs: seen.then_some(0),
        seed: at as u64,
        ..Sampling::greedy()
    }
}

/// Whether batches, prompts and guesses among them, give the same tokens wherever they are chosen.
pub(super) fn check(device: Device) -> anyhow::Result<bool> {
    let attention = AttentionConfig::preset("mfa", &Scale::new(128, 64)).context("mfa: no preset")?;
    let config: ModelConfig = serde_json::from_value(json!({
        "vocab_size": 300, "hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 200,
        "max_position_embeddings": 130, "attention": attention,
    }))?;
    let weights = Weights::allocate(&Arena::on(device)?, config.declare()?, DType::Bf16, false);
    weights.initialise(1);
    let pages: Vec<u32> = (0..4 * PAST.len() as u32).rev().collect();
    let mut runner = ModelRunner::new(Decoder::new(&config, &weights)?, pages.len(), PAGE, DType::Bf16)?;
    let mut tokens: Vec<Vec<u32>> = (0..PAST.len() as u32).map(|at| vec![at + 1]).collect();
    tokens[0].extend(30..50);
    let mut chosen = |past: [usize; PAST.len()],
                      seen: bool,
                      guesses: bool,
                      tokens: &[Vec<u32>]|
     -> anyhow::Result<Vec<Vec<u32>>> {
        let mut states: Vec<SamplerState> =
            (0..PAST.len()).map(|at| runner.begin(&[3, 9, 9, 200], sampling(at, seen), None)).collect();
        let mut works: Vec<Work<'_, SamplerState>> = (states.iter_mut().zip(tokens).enumerate())
            .map(|(at, (state, tokens))| Work {
                id: RequestId::new(at as u64),
                state,
                tokens,
                past: past[at],
                pages: &pages[4 * at..4 * at + 4],
                targets: &[],
                sample: true,
                guesses: if guesses { tokens.len() - 1 } else { 0 },
                ends: &[],
            })
            .collect();
        let outputs = runner.run(&mut works)?.into_iter();
        outputs.map(|output| Ok(output?.tokens.into_iter().map(|token| token.id).collect())).collect()
    };
    // What they have behind them.
    let before: Vec<Vec<u32>> =
        PAST.iter().map(|past| (0..(*past).max(1) as u32).map(|at| at * 7 % 300).collect()).collect();
    chosen([0; PAST.len()], true, false, &before)?;
    let mut chosen = |seen, guesses, tokens: &[Vec<u32>]| chosen(PAST, seen, guesses, tokens);
    let mut equal = true;
    // The first of each shape may compute otherwise than those that follow.
    chosen(true, false, &tokens)?;
    equal &= chosen(false, false, &tokens)? == chosen(true, false, &tokens)?;
    tokens[0].truncate(1);
    chosen(true, false, &tokens)?;
    for _ in 0..3 {
        let next = chosen(false, false, &tokens)?;
        equal &= next == chosen(true, false, &tokens)?;
        // Guesses that are right at first.
        let guessed: Vec<Vec<u32>> =
            tokens.iter().zip(&next).map(|(tokens, next)| [&tokens[..1], next, &[5]].concat()).collect();
        chosen(true, true, &guessed)?;
        equal &= chosen(false, true, &guessed)? == chosen(true, true, &guessed)?;
        tokens = next;
    }
    let verdict = if equal { "equal" } else { "differ: wrong" };
    print_line(format_args!("serving: tokens chosen on the device and on the host {verdict}"))?;
    Ok(equal)
}
