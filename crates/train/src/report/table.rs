//! The table of variants, in two dresses.

use super::{Report, RunReport};
use keyfold_core::units;
use std::fmt::Write;

/// The widest line of the terminal's table.
const TERMINAL_COLUMNS: usize = 110;

/// A column: its title over two lines, and its cell for a variant.
struct Column {
    title: [&'static str; 2],
    cell: fn(&RunReport) -> String,
}

const COLUMNS: [Column; 12] = [
    Column { title: ["", "attention"], cell: |run| run.attention.clone() },
    Column { title: ["", "params"], cell: |run| units::count(run.params) },
    Column { title: ["KV bytes", "per token"], cell: |run| count(run.kv_bytes_per_token) },
    Column { title: ["of", "MHA"], cell: |run| optional(run.kv_ratio_to_mha, percent) },
    Column { title: ["total", "rank"], cell: |run| count(run.total_effective_rank) },
    Column { title: ["latent", "dim"], cell: |run| count(run.shared_latent_dim) },
    Column { title: ["val", "loss"], cell: |run| decimal(run.val_loss) },
    Column { title: ["bits/", "byte"], cell: |run| optional(run.val_bits_per_byte, decimal) },
    Column { title: ["", "recall"], cell: |run| optional(run.recall_accuracy, percent) },
    Column { title: ["train", "tok/s"], cell: |run| rate(run.train_tokens_per_s) },
    Column { title: ["decode", "tok/s"], cell: |run| rate(run.decode_tokens_per_s) },
    Column { title: ["peak", "MiB"], cell: |run| optional(run.peak_rss_mib, rate) },
];

/// A dash: not measured, or without meaning here.
const NONE: &str = "-";

fn optional(value: Option<f64>, format: fn(f64) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), format)
}

/// Grouped digits while they are short.
fn count(value: u64) -> String {
    if value < 10_000_000 { units::grouped(value) } else { units::count(value) }
}

fn rate(value: f64) -> String {
    match value {
        0.0..100.0 => format!("{value:.1}"),
        100.0..1e15 => count(value.round() as u64),
        _ => format!("{value:.0e}"),
    }
}

fn decimal(value: f64) -> String {
    if value.abs() < 1000.0 || value.is_nan() { format!("{value:.3}") } else { format!("{value:.1e}") }
}

fn percent(value: f64) -> String {
    if value.abs() < 100.0 { format!("{:.1}%", 100.0 * value) } else { format!("{value:.0e}x") }
}

/// The cells of all variants by column, without columns that are empty in all of them.
fn columns(report: &Report) -> Vec<(&'static Column, Vec<String>)> {
    let filled =
        COLUMNS.iter().map(|column| (column, report.runs.iter().map(column.cell).collect::<Vec<_>>()));
    filled.filter(|(_, cells)| cells.is_empty() || cells.iter().any(|cell| cell != NONE)).collect()
}

/// A table of at most [`TERMINAL_COLUMNS`]; long names are cut.
pub(super) fn terminal(report: &Report) -> String {
    let columns: Vec<(Vec<String>, usize)> = columns(report)
        .into_iter()
        .map(|(column, cells)| {
            let lines: Vec<_> = column.title.into_iter().map(str::to_owned).chain(cells).collect();
            let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
            (lines, width)
        })
        .collect();
    let others: usize = columns.iter().skip(1).map(|(_, width)| width + 2).sum();
    let name_width = columns[0].1.min(TERMINAL_COLUMNS.saturating_sub(others));
    let mut text = String::new();
    for line in 0..report.runs.len() + 2 {
        let mut row = format!("{:name_width$}", shorten(&columns[0].0[line], name_width));
        for (cells, width) in &columns[1..] {
            let _ = write!(row, "  {:>width$}", cells[line]);
        }
        text.push_str(row.trim_end());
        text.push('\n');
        if line == 1 {
            text.push_str(&"-".repeat(name_width + others));
            text.push('\n');
        }
    }
    text
}

fn shorten(name: &str, width: usize) -> String {
    let name: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if name.chars().count() <= width {
        return name;
    }
    name.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// A Markdown table with aligned columns.
pub(super) fn markdown(report: &Report) -> String {
    let columns: Vec<(Vec<String>, usize)> = columns(report)
        .into_iter()
        .map(|(column, cells)| {
            let title = column.title.join(" ").trim_start().replace("/ ", "/");
            let cells = cells.into_iter().map(|cell| escape(&cell));
            let lines: Vec<_> = std::iter::once(title).chain(cells).collect();
            let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
            (lines, width)
        })
        .collect();
    let mut text = String::new();
    for line in 0..=report.runs.len() {
        for (index, (cells, width)) in columns.iter().enumerate() {
            let _ = match index {
                0 => write!(text, "| {:<width$} |", cells[line]),
                _ => write!(text, " {:>width$} |", cells[line]),
            };
        }
        text.push('\n');
        if line == 0 {
            for (index, (_, width)) in columns.iter().enumerate() {
                let _ = match index {
                    0 => write!(text, "|{}|", "-".repeat(width + 2)),
                    _ => write!(text, "{}:|", "-".repeat(width + 1)),
                };
            }
            text.push('\n');
        }
    }
    text
}

/// `text` as plain words on one line of Markdown, also within a table.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '|' | '\\' | '`' | '*' | '_' | '<' | '[' | ']' | '&') {
            escaped.push('\\');
        }
        escaped.push(if c.is_control() { ' ' } else { c });
    }
    escaped
}
