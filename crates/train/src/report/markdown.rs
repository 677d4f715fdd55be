//! The page for people.

use super::{
    Report, Setup,
    table::{self, escape},
};
use keyfold_core::units::grouped;
use std::fmt::Write;

/// Variants further apart than this in parameters are not comparable by their loss.
const MATCH_LIMIT: f64 = 0.01;

pub(super) fn page(report: &Report) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "# {} attention variants on {}\n\n\
         Each was trained on the same {} tokens (tokenizer: {}, seed {}).\n\n\
         ![Loss over training tokens, and final loss over KV cache per token](loss.svg)\n\n\
         {}\n{}\n\n{}",
        report.runs.len(),
        escape(&report.data),
        grouped(report.tokens),
        escape(&report.tokenizer),
        report.seed,
        table::markdown(report),
        parameter_match(report),
        how_measured(&report.setup),
    );
    variants(report, &mut page);
    samples(report, &mut page);
    page
}

/// Whether the losses may be compared.
fn parameter_match(report: &Report) -> String {
    let counts = || report.runs.iter().map(|run| run.params);
    let (Some(least), Some(most)) = (counts().min(), counts().max()) else {
        return "There are no runs.".to_owned();
    };
    let spread = report.parameter_spread();
    let (least, most, percent) = (grouped(least), grouped(most), 100.0 * spread);
    if spread <= MATCH_LIMIT {
        format!(
            "**Parameters are matched**: from {least} to {most}, {percent:.2} % apart (limit: {:.0} %).",
            100.0 * MATCH_LIMIT
        )
    } else {
        format!(
            "**Parameters are not matched**: from {least} to {most}, {percent:.1} % apart. A lower loss may come from \
             more parameters."
        )
    }
}

fn how_measured(setup: &Setup) -> String {
    let Setup { sequence_tokens, batch_sequences, val_tokens, .. } = *setup;
    let Setup { decode_sequences, decode_prompt_tokens, decode_new_tokens, .. } = *setup;
    format!(
        "## How it was measured\n\n\
         - Command: {}\n\
         - Program: {}\n\
         - Machine: {}\n\
         - Training: {batch_sequences} sequences of {} tokens an update; train tok/s leaves validation out.\n\
         - Validation loss: mean over {} held-out tokens, in nats per token, after the last update.\n\
         - Bits/byte: the same loss in bits, over the bytes of the text; it does not depend on the tokenizer.\n\
         - Decode tok/s: {decode_new_tokens} tokens decoded after {} cached ones in {decode_sequences} sequences at \
         once, summed over the sequences.\n\
         - KV bytes per token: all layers, as stored.\n\
         - Total rank (heads times rank per head) and latent dim (width of the space all heads share) are per layer, as \
         in arXiv 2412.19255, table 1.\n\
         - Peak MiB: resident memory, reset before each variant; a dash where the system forbids the reset.\n",
        code(&setup.command),
        escape(&setup.version),
        escape(&setup.machine),
        grouped(sequence_tokens),
        grouped(val_tokens),
        grouped(decode_prompt_tokens),
    )
}

fn variants(report: &Report, page: &mut String) {
    if report.runs.iter().all(|run| run.summary.is_empty()) {
        return;
    }
    page.push_str("\n## Variants\n\n");
    for run in &report.runs {
        let _ = writeln!(
            page,
            "- **{}**: {}; {} parameters ({} without embedding and output layer), {} updates in {:.0} s.",
            escape(&run.attention),
            escape(&run.summary),
            grouped(run.params),
            grouped(run.non_embedding_params),
            grouped(run.steps),
            run.train_seconds,
        );
    }
}

fn samples(report: &Report, page: &mut String) {
    let mut title = "\n## Samples\n";
    for run in &report.runs {
        if let Some(sample) = &run.sample {
            let fence = "`".repeat(longest_backticks(sample).max(2) + 1);
            let name = escape(&run.attention);
            let _ = write!(page, "{title}\n### {name}\n\n{fence}text\n{}\n{fence}\n", sample.trim_end());
            title = "";
        }
    }
}

/// `text` as code within a line.
fn code(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let fence = "`".repeat(longest_backticks(&text) + 1);
    match text.starts_with('`') || text.ends_with('`') || text.is_empty() {
        true => format!("{fence} {text} {fence}"),
        false => format!("{fence}{text}{fence}"),
    }
}

/// The length of the longest run of backticks; a fence must be longer.
fn longest_backticks(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}
