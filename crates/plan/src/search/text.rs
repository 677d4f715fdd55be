//! The page for a terminal.

use super::{Design, Goal, Plan};
use crate::{Grid, inspect::time};
use keyfold_core::units::{count, grouped};

/// Most rows of the terminal's table.
pub(super) const ROWS: usize = 24;

impl Plan {
    /// The designs of the front that a short table shows: the chosen one, and for each kind and cache that of the largest
    /// rank, from evenly spread caches where there are too many.
    pub fn shown(&self) -> Vec<&Design> {
        let best = |design: &&Design| {
            design.chosen
                || !self.front.iter().any(|other| {
                    other.attention == design.attention
                        && other.kv_bytes_per_token == design.kv_bytes_per_token
                        && other.total_effective_rank > design.total_effective_rank
                })
        };
        let all: Vec<&Design> = self.front.iter().filter(best).collect();
        if all.len() <= ROWS {
            return all;
        }
        let kept = |place: usize| (place * ROWS / all.len()) != ((place + 1) * ROWS / all.len());
        all.iter()
            .enumerate()
            .filter(|(place, design)| design.chosen || kept(*place))
            .map(|(_, d)| *d)
            .collect()
    }

    /// The page for a terminal.
    pub fn to_text(&self) -> String {
        let mut grid = Grid::new(&[
            "",
            "attention",
            "KV bytes",
            "of target",
            "total rank",
            "latent dim",
            "params",
            "off",
            "MLP width",
            "step",
            "tokens/s",
            "shape",
        ]);
        let row = |mark: &str, design: &Design| {
            let ratio = design.kv_bytes_per_token as f64 / self.reference.kv_bytes_per_token as f64;
            [
                mark.to_owned(),
                design.attention.to_owned(),
                grouped(design.kv_bytes_per_token),
                format!("{:.1}%", 100.0 * ratio),
                grouped(design.total_effective_rank),
                grouped(design.shared_latent_dim),
                count(design.params_total),
                format!("{:+.2}%", 100.0 * design.deviation),
                grouped(design.mlp_width as u64),
                time(design.step_seconds),
                grouped(design.tokens_per_s as u64),
                design.shape.clone(),
            ]
        };
        grid.row(row("target", &self.reference));
        let shown = self.shown();
        for design in &shown {
            grid.row(row(if design.chosen { "chosen" } else { "" }, design));
        }
        for design in self.best_of_kind.iter().filter(|design| !design.chosen) {
            grid.row(row("best of kind", design));
        }
        let goal = match self.goal {
            Goal::Balanced => "the widest latent of those within a quarter of the largest total rank",
            Goal::MaxTer => "the largest total rank",
            Goal::MinCost => "the least step at the target's total rank or more",
        };
        format!(
            "{}: {} designs looked at, cache within {} bytes per token; {} of {} on the Pareto front of \
             cache, rank, latent and step\n(a step: {} sequences of {} tokens on {}, cache at {}; lower bound). Chosen: {goal}.\n\n{}",
            self.target,
            self.considered,
            grouped(self.kv_budget),
            shown.len(),
            self.front.len(),
            grouped(self.workload.batch),
            grouped(self.workload.context),
            self.hardware.name,
            self.workload.kv_dtype,
            grid.terminal(),
        )
    }
}
