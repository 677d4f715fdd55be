//! Drawing in logical pixels on either backend of `plotters`.
//!
//! The backends take whole pixels only. Everything is therefore drawn [`FINE`] times larger: the SVG gets a view box of
//! that size, and the bitmap is averaged down, which also smooths its edges.

use super::{PlotError, style};
use plotters::{
    coord::Shift,
    prelude::*,
    style::{
        register_font,
        text_anchor::{HPos, Pos, VPos},
    },
};
use std::sync::OnceLock;

/// Units of a backend to one logical pixel.
const FINE: u32 = 4;
/// Units of the bitmap backend, along one side, that are averaged to one pixel of the PNG.
const AVERAGED: u32 = 2;

/// In an SVG this is a list: the embedded font where installed, else the like.
const FAMILY: &str = "Inter, Helvetica, Arial, sans-serif";
/// `plotters` takes the height of a line for the size of a font; this many em.
const LINE_HEIGHT: f64 = 1.24;

/// A point in logical pixels from the upper left.
pub(super) type Point = (f64, f64);

/// Which part of a text its position is.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Align {
    Left,
    Center,
    Right,
}

/// How a text is set.
#[derive(Clone, Copy)]
pub(super) struct Type {
    /// Pixels to the em.
    pub(super) size: f64,
    pub(super) bold: bool,
    pub(super) color: RGBColor,
    pub(super) align: Align,
    /// Reads from the bottom to the top.
    pub(super) upwards: bool,
}

impl Type {
    pub(super) fn new(size: f64, color: RGBColor) -> Self {
        Self { size, bold: false, color, align: Align::Left, upwards: false }
    }

    pub(super) fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    pub(super) fn align(self, align: Align) -> Self {
        Self { align, ..self }
    }

    pub(super) fn upwards(self) -> Self {
        Self { upwards: true, ..self }
    }

    fn font(self) -> FontDesc<'static> {
        let weight = if self.bold { FontStyle::Bold } else { FontStyle::Normal };
        FontDesc::new(FontFamily::Name(FAMILY), self.size * LINE_HEIGHT * f64::from(FINE), weight)
    }

    /// `text`, cut to a width of `room` pixels.
    pub(super) fn fit(self, text: &str, room: f64) -> String {
        let mut text = text.to_owned();
        while self.width(&text) > room {
            // The ellipsis of the last round, and the letter before it.
            text = text.chars().take(text.chars().count().saturating_sub(2)).chain(['…']).collect();
        }
        text
    }

    /// Width of `text` in pixels.
    pub(super) fn width(self, text: &str) -> f64 {
        register_fonts();
        self.font().box_size(text).map_or(0.0, |(width, _)| f64::from(width) / f64::from(FINE))
    }
}

/// What a drawing needs of a backend, so that only this file knows that there are two.
trait Surface {
    fn path(&self, points: Vec<(i32, i32)>, style: ShapeStyle) -> Result<(), PlotError>;
    fn polygon(&self, corners: Vec<(i32, i32)>, color: RGBColor) -> Result<(), PlotError>;
    fn text(&self, text: &str, at: (i32, i32), style: TextStyle<'_>) -> Result<(), PlotError>;
}

impl<B: DrawingBackend> Surface for DrawingArea<B, Shift>
where
    B::ErrorType: 'static,
{
    fn path(&self, points: Vec<(i32, i32)>, style: ShapeStyle) -> Result<(), PlotError> {
        self.draw(&PathElement::new(points, style)).map_err(draw_error)
    }

    fn polygon(&self, corners: Vec<(i32, i32)>, color: RGBColor) -> Result<(), PlotError> {
        self.draw(&Polygon::new(corners, color)).map_err(draw_error)
    }

    fn text(&self, text: &str, at: (i32, i32), style: TextStyle<'_>) -> Result<(), PlotError> {
        self.draw(&Text::new(text, at, style)).map_err(draw_error)
    }
}

/// What is drawn on.
pub(super) struct Canvas<'a> {
    surface: &'a dyn Surface,
    /// From a text's position to its baseline, in em: the backends differ.
    baseline: f64,
}

impl Canvas<'_> {
    /// A line of `width` through `points`.
    pub(super) fn line(&self, points: &[Point], color: RGBColor, width: f64) -> Result<(), PlotError> {
        let width = (width * f64::from(FINE)).round().max(1.0) as u32;
        self.surface.path(points.iter().copied().map(fine).collect(), color.stroke_width(width))
    }

    /// A line through `points`, interrupted as `dash` says.
    pub(super) fn dashed(
        &self,
        points: &[Point],
        color: RGBColor,
        width: f64,
        dash: Option<(f64, f64)>,
    ) -> Result<(), PlotError> {
        let Some(dash) = dash else { return self.line(points, color, width) };
        style::dashes(points, dash).iter().try_for_each(|piece| self.line(piece, color, width))
    }

    /// A filled polygon.
    pub(super) fn fill(&self, corners: &[Point], color: RGBColor) -> Result<(), PlotError> {
        self.surface.polygon(corners.iter().copied().map(fine).collect(), color)
    }

    /// A marker on a ring of paper, which separates it from what it covers.
    pub(super) fn marker(&self, look: style::Look, center: Point, radius: f64) -> Result<(), PlotError> {
        self.fill(&look.marker(center, radius + 1.5), style::PAPER)?;
        self.fill(&look.marker(center, radius), look.color())
    }

    /// `text` with its baseline at `at`.
    pub(super) fn text(&self, text: &str, at: Point, kind: Type) -> Result<(), PlotError> {
        let drop = self.baseline * kind.size;
        let at = if kind.upwards { (at.0 - drop, at.1) } else { (at.0, at.1 - drop) };
        let horizontal = match kind.align {
            Align::Left => HPos::Left,
            Align::Center => HPos::Center,
            Align::Right => HPos::Right,
        };
        let turn = if kind.upwards { FontTransform::Rotate270 } else { FontTransform::None };
        let font = kind.font().transform(turn);
        let style = TextStyle::from(font).color(&kind.color).pos(Pos::new(horizontal, VPos::Top));
        // A control character has no place in XML.
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.surface.text(&text, fine(at), style)
    }
}

fn fine((x, y): Point) -> (i32, i32) {
    ((x * f64::from(FINE)).round() as i32, (y * f64::from(FINE)).round() as i32)
}

fn draw_error(error: impl std::error::Error + Send + Sync + 'static) -> PlotError {
    PlotError::Draw(error.into())
}

/// Makes the embedded fonts known to `plotters`, once.
fn register_fonts() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        // Only a broken font is refused; text would then fail to draw with an error that says so.
        let _ = register_font(FAMILY, FontStyle::Normal, include_bytes!("font/Inter-Regular.otf"));
        let _ = register_font(FAMILY, FontStyle::Bold, include_bytes!("font/Inter-SemiBold.otf"));
    });
}

/// An SVG document of `size` logical pixels.
pub(super) fn svg(
    size: (u32, u32),
    draw: impl FnOnce(&Canvas<'_>) -> Result<(), PlotError>,
) -> Result<String, PlotError> {
    register_fonts();
    let fine_size = (size.0 * FINE, size.1 * FINE);
    let mut document = String::new();
    {
        let area = SVGBackend::with_string(&mut document, fine_size).into_drawing_area();
        area.fill(&style::PAPER).map_err(draw_error)?;
        draw(&Canvas { surface: &area, baseline: 0.76 })?;
        area.present().map_err(draw_error)?;
    }
    // The view box keeps the fine size.
    let given = format!("width=\"{}\" height=\"{}\"", fine_size.0, fine_size.1);
    Ok(document.replacen(&given, &format!("width=\"{}\" height=\"{}\"", size.0, size.1), 1))
}

/// A PNG file of `size` logical pixels, `FINE / AVERAGED` pixels to one of them.
pub(super) fn png(
    size: (u32, u32),
    draw: impl FnOnce(&Canvas<'_>) -> Result<(), PlotError>,
) -> Result<Vec<u8>, PlotError> {
    register_fonts();
    let (width, height) = (size.0 * FINE, size.1 * FINE);
    let mut pixels = vec![0; width as usize * height as usize * 3];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        area.fill(&style::PAPER).map_err(draw_error)?;
        draw(&Canvas { surface: &area, baseline: 0.5 * LINE_HEIGHT })?;
        area.present().map_err(draw_error)?;
    }
    let averaged = average(&pixels, width as usize);
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width / AVERAGED, height / AVERAGED);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::High);
    encoder.write_header()?.write_image_data(&averaged)?;
    Ok(file)
}

/// Means over squares of [`AVERAGED`] pixels of an RGB picture of `width` pixels; both sides are multiples of it.
fn average(pixels: &[u8], width: usize) -> Vec<u8> {
    const SIDE: usize = AVERAGED as usize;
    let stride = width * 3;
    let mut averaged = Vec::with_capacity(pixels.len() / (SIDE * SIDE));
    for rows in pixels.chunks_exact(stride * SIDE) {
        for left in (0..stride).step_by(3 * SIDE) {
            for channel in left..left + 3 {
                let square = (0..SIDE * SIDE).map(|i| rows[i / SIDE * stride + channel + 3 * (i % SIDE)]);
                let sum: usize = square.map(usize::from).sum();
                averaged.push((sum / (SIDE * SIDE)) as u8);
            }
        }
    }
    averaged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averaging_halves_both_sides() {
        let pixels = [[0, 10, 20], [4, 10, 20], [8, 30, 20], [4, 30, 20], [0; 3], [0; 3], [0; 3], [0; 3]];
        let averaged = average(pixels.as_flattened(), 2);
        assert_eq!(averaged, [4, 20, 20, 0, 0, 0]);
    }

    #[test]
    fn both_weights_of_the_font_have_widths() {
        let kind = Type::new(13.0, style::INK);
        assert!(kind.width("mfa") > 10.0 && kind.width("mfa") < 40.0);
        assert!(kind.bold().width("mfa") > kind.width("mfa"));
    }
}
