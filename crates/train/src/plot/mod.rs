//! `loss.svg` and `loss.png`: what a comparison found, in one picture of two panels.
//!
//! Left: the loss over the tokens trained on, a line for each variant. Right: the final loss over the KV cache per token,
//! with the Pareto front: the variants that no other one beats in both. The font is part of the program, so nothing has
//! to be installed; colours are told apart by colour-blind people too, and every variant has a marker of its own.

mod axes;
mod canvas;
mod curves;
mod designs;
mod labels;
mod outcomes;
mod page;
mod scale;
mod style;

pub use designs::{Design, Designs};

use crate::{
    atomic::{AtomicError, write_atomic},
    report::Report,
};
use keyfold_core::units;
use std::{
    error::Error,
    io::Write,
    path::{Path, PathBuf},
};

/// The file of the picture that scales.
pub const SVG_FILE: &str = "loss.svg";
/// The file of the picture in pixels.
pub const PNG_FILE: &str = "loss.png";

/// A variant in the picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// Its name in the legend and at its point.
    pub name: String,
    /// Loss in nats per token after so many tokens, in order of the tokens. A long curve is drawn as the means of equal
    /// stretches of it; losses that are not finite are left out.
    pub curve: Vec<(u64, f64)>,
    /// Bytes of KV cache for each token, over all layers.
    pub kv_bytes_per_token: u64,
    /// Validation loss in nats per token at the end.
    pub final_loss: f64,
}

/// The picture's contents.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The first line.
    pub title: String,
    /// A smaller line below it; may be empty.
    pub subtitle: String,
    /// In the order of the legend.
    pub variants: Vec<Variant>,
    /// Whether the axis of tokens is logarithmic, which shows the start of training better and its end worse.
    pub log_tokens: bool,
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// The drawing library failed.
    #[error("cannot draw the plot: {0}")]
    Draw(#[source] Box<dyn Error + Send + Sync>),
    /// The pixels could not be compressed.
    #[error("cannot encode the plot as PNG: {0}")]
    Encode(#[from] png::EncodingError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] AtomicError),
    /// A file of no kind that can be drawn.
    #[error("{}: expected a name that ends in .svg or .png", .0.display())]
    Name(PathBuf),
}

impl Figure {
    /// The picture as an SVG document. Its text is text, in the reader's own sans-serif font.
    ///
    /// # Errors
    /// When the drawing library fails.
    pub fn to_svg(&self) -> Result<String, PlotError> {
        canvas::svg(page::Head::of(self).size(), |canvas| page::draw(canvas, self))
    }

    /// The picture as a PNG file of two pixels to one of the SVG's.
    ///
    /// # Errors
    /// When the drawing library or the encoder fails.
    pub fn to_png(&self) -> Result<Vec<u8>, PlotError> {
        canvas::png(page::Head::of(self).size(), |canvas| page::draw(canvas, self))
    }

    /// Writes `loss.svg` and `loss.png` into `folder`.
    ///
    /// # Errors
    /// When drawing or writing fails.
    pub fn write(&self, folder: &Path) -> Result<(), PlotError> {
        let (svg, png) = (self.to_svg()?, self.to_png()?);
        write_atomic(&folder.join(SVG_FILE), |file| file.write_all(svg.as_bytes()))?;
        Ok(write_atomic(&folder.join(PNG_FILE), |file| file.write_all(&png))?)
    }
}

impl From<&Report> for Figure {
    fn from(report: &Report) -> Self {
        let variants = report.runs.iter().map(|run| Variant {
            name: run.attention.clone(),
            curve: run.curve.iter().map(|point| (point.tokens, point.loss)).collect(),
            kv_bytes_per_token: run.kv_bytes_per_token,
            final_loss: run.val_loss,
        });
        let largest = report.runs.iter().map(|run| run.params).max().unwrap_or(0);
        Self {
            title: format!("Attention variants on {}", report.data),
            subtitle: format!(
                "{} parameters, {} training tokens, seed {}",
                units::count(largest),
                units::count(report.tokens),
                report.seed
            ),
            variants: variants.collect(),
            log_tokens: false,
        }
    }
}

#[cfg(test)]
mod tests;
