//! Designs that were searched, in one picture of two panels: total effective rank over the KV cache, and the least time of a
//! decoding step over it.

use super::{
    PlotError,
    axes::{Axes, padded, range},
    canvas::{self, Align, Canvas, Point, Type},
    labels::{self, Named, Rect},
    page::Head,
    scale::{self, Scale},
    style::{FAINT_INK, FRONT, INK, Look},
};
use crate::atomic::write_atomic;
use std::{io::Write, path::Path};

/// A design in the picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Design {
    /// Its attention's kind, which the legend names.
    pub kind: String,
    /// A name at its point.
    pub name: Option<String>,
    /// Bytes of KV cache for each token, over all layers.
    pub kv_bytes_per_token: u64,
    /// Total effective rank of a layer.
    pub total_effective_rank: u64,
    /// Least seconds of a decoding step.
    pub step_seconds: f64,
}

/// The picture's contents.
#[derive(Clone, Debug, PartialEq)]
pub struct Designs {
    /// The first line.
    pub title: String,
    /// A smaller line below it.
    pub subtitle: String,
    /// The designs; kinds stand in the legend in the order of their first ones.
    pub designs: Vec<Design>,
}

const NAME: f64 = 13.0;

/// What a panel shows.
struct Panel {
    title: &'static str,
    hint: &'static str,
    y_title: &'static str,
    value: fn(&Design) -> f64,
    ticks: fn(f64, f64) -> Vec<scale::Tick>,
    /// Whether larger values are better.
    upwards: bool,
}

const PANELS: [Panel; 2] = [
    Panel {
        title: "Total effective rank against KV cache",
        hint: "upper left is better",
        y_title: "Total effective rank (a layer)",
        value: |design| design.total_effective_rank as f64,
        ticks: |from, to| scale::token_ticks(from, to, false),
        upwards: true,
    },
    Panel {
        title: "Decoding step against KV cache",
        hint: "lower left is better",
        y_title: "Least time of a step (ms)",
        value: |design| 1e3 * design.step_seconds,
        ticks: scale::loss_ticks,
        upwards: false,
    },
];

impl Designs {
    /// Fails unless `path` ends in `.svg` or `.png`.
    ///
    /// # Errors
    /// Names the path.
    pub fn check_name(path: &Path) -> Result<(), PlotError> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("svg" | "png") => Ok(()),
            _ => Err(PlotError::Name(path.to_owned())),
        }
    }

    /// The picture as an SVG document.
    ///
    /// # Errors
    /// When the drawing library fails.
    pub fn to_svg(&self) -> Result<String, PlotError> {
        canvas::svg(self.head().size(), |canvas| self.draw(canvas))
    }

    /// The picture as a PNG file of two pixels to one of the SVG's.
    ///
    /// # Errors
    /// When the drawing library or the encoder fails.
    pub fn to_png(&self) -> Result<Vec<u8>, PlotError> {
        canvas::png(self.head().size(), |canvas| self.draw(canvas))
    }

    /// Writes the picture to `path`, as its ending says.
    ///
    /// # Errors
    /// When the ending is neither `.svg` nor `.png`, or drawing or writing fails.
    pub fn write(&self, path: &Path) -> Result<(), PlotError> {
        Self::check_name(path)?;
        let bytes = match path.extension().is_some_and(|extension| extension == "svg") {
            true => self.to_svg()?.into_bytes(),
            false => self.to_png()?,
        };
        Ok(write_atomic(path, |file| file.write_all(&bytes))?)
    }

    fn head(&self) -> Head<'_> {
        let mut names: Vec<&str> = Vec::new();
        for design in &self.designs {
            if !names.contains(&design.kind.as_str()) {
                names.push(&design.kind);
            }
        }
        Head { title: &self.title, subtitle: &self.subtitle, names, lines: false }
    }

    fn draw(&self, canvas: &Canvas<'_>) -> Result<(), PlotError> {
        let head = self.head();
        let areas = head.draw(canvas)?;
        areas.into_iter().zip(&PANELS).try_for_each(|(area, panel)| self.panel(canvas, &head, panel, area))
    }

    fn panel(
        &self,
        canvas: &Canvas<'_>,
        head: &Head<'_>,
        panel: &Panel,
        area: Rect,
    ) -> Result<(), PlotError> {
        let value = |design: &Design| (design.kv_bytes_per_token.max(1) as f64, (panel.value)(design));
        let drawn: Vec<&Design> = self.designs.iter().filter(|design| value(design).1.is_finite()).collect();
        let bytes = range(drawn.iter().map(|design| value(design).0.log2())).unwrap_or((10.0, 14.0));
        let (low_power, high_power) = padded(bytes, 0.08, 0.12, 2.0);
        let (from, to) = (low_power.exp2(), high_power.exp2());
        let (least, most) = range(drawn.iter().map(|design| value(design).1)).unwrap_or((0.0, 1.0));
        // From zero: both values are amounts, and half as high is to be half as much.
        let (low, high) = (0.0, 1.12 * most.max(least).max(1e-9));
        let axes = Axes {
            area,
            title: panel.title,
            x: Scale { from, to, pixels: (area.left, area.right), log: true },
            y: Scale { from: low, to: high, pixels: (area.bottom, area.top), log: false },
            x_title: "KV cache (bytes per token, all layers)",
            y_title: panel.y_title,
            x_ticks: scale::byte_ticks(from, to),
            y_ticks: (panel.ticks)(low, high),
        };
        axes.draw(canvas)?;
        if drawn.is_empty() {
            return axes.draw_empty(canvas);
        }
        let hint = Type::new(12.0, FAINT_INK).align(Align::Right);
        canvas.text(panel.hint, (area.right, area.top - 16.0), hint)?;
        let best = best(drawn.iter().map(|design| value(design)).collect(), panel.upwards);
        let line: Vec<Point> = best.into_iter().map(|point| axes.place(point)).collect();
        canvas.line(&line, FRONT, 3.0)?;

        let kind = Type::new(NAME, INK).align(Align::Center);
        for design in &drawn {
            let index = head.names.iter().position(|name| *name == design.kind).unwrap_or(0);
            let size = if design.name.is_some() { 7.0 } else { 4.5 };
            canvas.marker(Look::of(index), axes.place(value(design)), size)?;
        }
        let labelled: Vec<_> = drawn.iter().filter_map(|d| Some((d.name.as_deref()?, *d))).collect();
        let named: Vec<_> = labelled
            .iter()
            .map(|(name, design)| Named {
                point: axes.place(value(design)),
                width: kind.width(name),
                height: NAME,
            })
            .collect();
        let others: Vec<Point> = drawn.iter().map(|design| axes.place(value(design))).collect();
        for ((name, place), (text, _)) in
            named.iter().zip(labels::place(&named, &others, area)).zip(&labelled)
        {
            if let Some(leader) = labels::leader(name, &place) {
                canvas.line(&leader, FRONT, 1.0)?;
            }
            let (x, y) = place.center();
            canvas.text(text, (x, y + 0.36 * NAME), kind)?;
        }
        Ok(())
    }
}

/// The points that none of less cache beats, from left to right.
fn best(mut points: Vec<Point>, upwards: bool) -> Vec<Point> {
    let better = |a: f64, b: f64| if upwards { a > b } else { a < b };
    points.sort_by(|a, b| {
        a.0.total_cmp(&b.0).then(if upwards { b.1.total_cmp(&a.1) } else { a.1.total_cmp(&b.1) })
    });
    let mut front: Vec<Point> = Vec::new();
    for point in points {
        if front.last().is_none_or(|last| better(point.1, last.1)) {
            front.push(point);
        }
    }
    front
}

#[cfg(test)]
mod tests {
    use super::*;

    fn designs() -> Designs {
        let design = |kind: &str, kv_bytes_per_token, total_effective_rank, step_seconds| Design {
            kind: kind.to_owned(),
            name: (kind == "mha").then(|| "target".to_owned()),
            kv_bytes_per_token,
            total_effective_rank,
            step_seconds,
        };
        let designs = vec![
            design("mha", 196_608, 2048, 0.02),
            design("mfa", 24_576, 6656, 0.008),
            design("mfa", 12_288, 6000, 0.007),
            design("mfa-kr", 12_288, 6912, 0.006),
        ];
        Designs { title: "Attention".to_owned(), subtitle: String::new(), designs }
    }

    #[test]
    fn both_files_are_what_their_names_say() {
        let folder = tempfile::tempdir().unwrap();
        for (name, start) in [("a.svg", &b"<svg"[..]), ("a.png", b"\x89PNG")] {
            let path = folder.path().join(name);
            designs().write(&path).unwrap();
            assert!(std::fs::read(path).unwrap().starts_with(start), "{name}");
        }
        for name in ["a.pdf", "a", ".svg"] {
            let error = designs().write(&folder.path().join(name)).unwrap_err().to_string();
            assert!(error.contains(".svg or .png"), "{error}");
        }
        let svg = designs().to_svg().unwrap();
        for text in ["mfa-kr", "target", "Total effective rank", "16 KiB", "Least time"] {
            assert!(svg.contains(text), "{text}");
        }
    }

    #[test]
    fn lines_follow_the_best() {
        let points = vec![(4.0, 2.0), (1.0, 3.0), (2.0, 1.0), (1.0, 2.0), (8.0, 5.0)];
        assert_eq!(best(points.clone(), true), [(1.0, 3.0), (8.0, 5.0)]);
        assert_eq!(best(points, false), [(1.0, 2.0), (2.0, 1.0)]);
        assert!(best(Vec::new(), true).is_empty());
    }

    #[test]
    fn no_figures_make_it_panic() {
        let mut hostile = designs();
        for (bytes, seconds) in [(0, f64::NAN), (u64::MAX, f64::INFINITY), (1, 0.0), (1, f64::MAX)] {
            (hostile.designs[0].kv_bytes_per_token, hostile.designs[0].step_seconds) = (bytes, seconds);
            hostile.designs[0].total_effective_rank = bytes;
            assert!(hostile.to_svg().is_ok());
        }
        hostile.designs.clear();
        assert!(hostile.to_svg().unwrap().contains("no measurements"));
    }
}
