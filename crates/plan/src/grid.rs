//! Tables in three dresses.

use std::fmt::Write;

/// A table: a head and rows of as many cells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grid {
    /// Titles of the columns.
    pub head: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

impl Grid {
    /// An empty table.
    pub fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|title| (*title).to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// For a terminal: the first column and text to the left, numbers to the right.
    pub fn terminal(&self) -> String {
        let widths = self.widths(|cell| cell.chars().count());
        let mut text = String::new();
        let mut line = |cells: &[String]| {
            let mut row = String::new();
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                // Writing to a string cannot fail.
                let _ = match self.is_number(column) {
                    true => write!(row, "{gap}{cell:>width$}"),
                    false => write!(row, "{gap}{cell:<width$}"),
                };
            }
            text.push_str(row.trim_end());
            text.push('\n');
        };
        line(&self.head);
        line(&[widths.iter().map(|width| "-".repeat(width + 2)).collect::<String>()[2..].to_owned()]);
        self.rows.iter().for_each(|row| line(row));
        text
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            format!(
                "| {} |\n",
                cells.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>().join(" | ")
            )
        };
        let rule: Vec<_> =
            (0..self.head.len()).map(|column| if self.is_number(column) { "---:" } else { "---" }).collect();
        let mut text = line(&self.head);
        let _ = writeln!(text, "| {} |", rule.join(" | "));
        text.extend(self.rows.iter().map(|row| line(row)));
        text
    }

    /// As a LaTeX `tabular`; cells between dollar signs are formulas and stay as they are.
    pub fn latex(&self) -> String {
        let escape = |cell: &String| match cell.starts_with('$') {
            true => cell.clone(),
            false => cell.replace('&', "\\&").replace('%', "\\%").replace('_', "\\_"),
        };
        let line =
            |cells: &[String]| format!("{} \\\\\n", cells.iter().map(escape).collect::<Vec<_>>().join(" & "));
        let columns: String =
            (0..self.head.len()).map(|column| if self.is_number(column) { 'r' } else { 'l' }).collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!(
            "\\begin{{tabular}}{{{columns}}}\n\\hline\n{}\\hline\n{rows}\\hline\n\\end{{tabular}}\n",
            line(&self.head)
        )
    }

    fn widths(&self, of: impl Fn(&str) -> usize) -> Vec<usize> {
        let column = |i: usize| self.rows.iter().filter_map(move |row| row.get(i));
        (0..self.head.len())
            .map(|i| column(i).chain([&self.head[i]]).map(|cell| of(cell)).max().unwrap_or(0))
            .collect()
    }

    /// Whether a column, but for its title, is of numbers, units behind them or not.
    fn is_number(&self, column: usize) -> bool {
        let number = |cell: &String| {
            let digits = cell.trim_start_matches(['+', '-']);
            digits.starts_with(|first: char| first.is_ascii_digit()) && !cell.contains(", ")
        };
        column > 0 && self.rows.iter().filter_map(|row| row.get(column)).all(number)
    }
}
