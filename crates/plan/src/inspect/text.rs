//! The page for a terminal.

use super::{Inspection, Layer};
use crate::{Grid, roofline::Step, symbols::plain};
use keyfold_core::units::{bytes, count, grouped};
use keyfold_model::weights::Part;
use std::fmt::Write;

pub(super) fn page(told: &Inspection) -> String {
    let mut page = format!(
        "{}: {} layers of width {}, {} token ids\n\n{}\n{}\n",
        told.name,
        told.layers.len(),
        grouped(told.hidden_size as u64),
        grouped(told.vocab_size as u64),
        layers(told).terminal(),
        parts(told).terminal(),
    );
    let mut named = Vec::new();
    for layer in &told.layers {
        let symbols = layer.symbols;
        if named.contains(&(layer.attention, symbols)) {
            continue;
        }
        named.push((layer.attention, symbols));
        // Writing to a string cannot fail.
        let _ = writeln!(
            page,
            "{}: cache {}, matrices {}, rank per head {}, latent {}, total effective rank {}",
            layer.attention,
            plain(symbols.cache),
            plain(symbols.parameters),
            plain(symbols.rank_per_head),
            plain(symbols.shared_latent_dim),
            plain(symbols.total_effective_rank),
        );
    }
    let _ = writeln!(page, "\n{}", cost(told));
    for note in &told.notes {
        let _ = writeln!(page, "note: {note}");
    }
    page.trim_end().to_owned()
}

/// Neighbouring layers that differ in their numbers alone.
fn groups(layers: &[Layer]) -> Vec<Vec<&Layer>> {
    let mut groups: Vec<Vec<&Layer>> = Vec::new();
    for layer in layers {
        match groups.last_mut() {
            Some(group) if Layer { layer: layer.layer, ..group[0].clone() } == *layer => group.push(layer),
            _ => groups.push(vec![layer]),
        }
    }
    groups
}

fn span(group: &[&Layer]) -> String {
    match group {
        [only] => only.layer.to_string(),
        [first, .., last] => format!("{}-{}", first.layer, last.layer),
        [] => String::new(),
    }
}

fn layers(told: &Inspection) -> Grid {
    let mut grid = Grid::new(&[
        "layers",
        "attention",
        "sees",
        "heads",
        "rank/head",
        "latent dim",
        "total rank",
        "cached planes",
        "bytes/token",
        "FLOP/byte",
        "attention params",
        "other params",
        "active params",
    ]);
    for group in groups(&told.layers) {
        let layer = group[0];
        let attention = layer.params.get(&Part::Attention).copied().unwrap_or(0);
        let planes: Vec<_> =
            layer.planes.iter().map(|plane| format!("{} {}", plane.name, plane.width)).collect();
        grid.row([
            span(&group),
            layer.attention.to_owned(),
            layer.window.map_or_else(|| "all".to_owned(), grouped),
            grouped(layer.heads as u64),
            grouped(layer.rank_per_head as u64),
            grouped(layer.shared_latent_dim as u64),
            grouped(layer.total_effective_rank as u64),
            planes.join(" + "),
            grouped(layer.kv_bytes_per_token),
            rounded(layer.arithmetic_intensity),
            count(attention),
            count(layer.params_total - attention),
            count(layer.params_active),
        ]);
    }
    grid
}

fn parts(told: &Inspection) -> Grid {
    let mut grid = Grid::new(&["parameters", "total", "active"]);
    let name = |part: &Part| match part {
        Part::Embedding => "embedding",
        Part::Attention => "attention",
        Part::Mlp => "dense MLPs",
        Part::Experts => "experts",
        Part::SharedExperts => "shared experts",
        Part::Router => "routers",
        Part::Norms => "norms",
        Part::Head => "output head",
    };
    for (part, total) in &told.params {
        let active = told.params_active_by_part.get(part).copied().unwrap_or(0);
        grid.row([name(part).to_owned(), grouped(*total), grouped(active)]);
    }
    grid.row(["all".to_owned(), grouped(told.params_total), grouped(told.params_active)]);
    grid
}

fn cost(told: &Inspection) -> String {
    let (flops, work) = (&told.flops, &told.workload);
    let mut text = format!(
        "cache at {}: {} bytes per token, {} for a context of {}\n\
         a decoded token: {} FLOPs: {} attention projections, {} attention core, {} MLPs, {} head\n\
         arithmetic intensity of the core: {} FLOP per byte read",
        work.kv_dtype,
        grouped(told.kv_bytes_per_token),
        bytes(told.kv_bytes_of_context),
        grouped(work.context),
        short(told.flops_per_token),
        short(flops.attention_linear),
        short(flops.attention_core),
        short(flops.mlp),
        short(flops.head),
        rounded(told.arithmetic_intensity),
    );
    if (told.arithmetic_intensity_computed / told.arithmetic_intensity - 1.0).abs() > 1e-6 {
        let _ = write!(text, " by whole rows, {} as computed", rounded(told.arithmetic_intensity_computed));
    }
    if let Some(bound) = &told.hardware {
        let step = |step: &Step| {
            format!(
                "batch {}: {} a step (linear maps {}, attention {}), {} tokens/s; limit: {}",
                grouped(step.batch),
                time(step.seconds),
                time(step.linear_seconds),
                time(step.attention_seconds),
                grouped(step.tokens_per_s as u64),
                step.limit.describe(),
            )
        };
        let _ = write!(
            text,
            "\n\non {} x {} (at best; weights of {} at bf16; ridge {} FLOP/byte)\n{}\nper decoded token: {}",
            bound.devices,
            bound.name,
            bytes(bound.weight_bytes as u64),
            rounded(bound.ridge),
            step(&bound.step),
            time(bound.seconds_per_token),
        );
        match (bound.largest_batch, &bound.largest) {
            (Some(_), Some(largest)) => {
                let _ = write!(text, "\nlargest {}", step(largest));
            }
            (Some(_), None) => text.push_str("\nno sequence of this context fits beside the weights"),
            (None, _) => text.push_str("\nthe memory is not known, so neither is the largest batch"),
        }
        if bound.largest_batch.is_some_and(|largest| largest < bound.step.batch) {
            let _ = write!(text, "\nnote: a batch of {} does not fit", grouped(bound.step.batch));
        }
    }
    text
}

/// A number of FLOPs.
fn short(flops: u64) -> String {
    if flops < 100_000 { grouped(flops) } else { format!("{:.2e}", flops as f64) }
}

fn rounded(value: f64) -> String {
    if (value - value.round()).abs() < 1e-9 * value { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// Seconds as people read them.
pub(crate) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} us", 1e6 * s),
        s if s < 1.0 => format!("{:.2} ms", 1e3 * s),
        s => format!("{s:.2} s"),
    }
}
