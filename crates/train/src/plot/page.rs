//! The whole picture: title, legend, and the places of the two panels.

use super::{
    Figure, PlotError,
    canvas::{Canvas, Type},
    curves,
    labels::Rect,
    outcomes,
    style::{FAINT_INK, INK, Look},
};

const WIDTH: u32 = 1360;
const MARGIN: f64 = 28.0;
/// From the top to the first line of the legend.
const LEGEND_TOP: f64 = 88.0;
const LEGEND_LINE: f64 = 24.0;
/// From the legend to the panels, with the panels' titles.
const ABOVE_PANELS: f64 = 44.0;
const PANEL_HEIGHT: f64 = 390.0;
/// Below the panels, with marks and titles of their axes.
const BELOW_PANELS: f64 = 72.0;
/// Left and right end of the panels; between them are the names of the lines.
const PANELS: [(f64, f64); 2] = [(86.0, 600.0), (824.0, 1332.0)];

/// Width and height in logical pixels; the legend takes as many lines as it needs.
pub(super) fn size(figure: &Figure) -> (u32, u32) {
    (WIDTH, (panels_top(figure) + PANEL_HEIGHT + BELOW_PANELS).ceil() as u32)
}

fn panels_top(figure: &Figure) -> f64 {
    let lines = legend(figure).last().map_or(0.0, |(_, line)| line + 1.0);
    LEGEND_TOP + LEGEND_LINE * lines + ABOVE_PANELS
}

pub(super) fn draw(canvas: &Canvas<'_>, figure: &Figure) -> Result<(), PlotError> {
    let title = Type::new(20.0, INK).bold();
    let subtitle = Type::new(13.0, FAINT_INK);
    let room = f64::from(WIDTH) - 2.0 * MARGIN;
    canvas.text(&title.fit(&figure.title, room), (MARGIN, 38.0), title)?;
    canvas.text(&subtitle.fit(&figure.subtitle, room), (MARGIN, 60.0), subtitle)?;
    draw_legend(canvas, figure)?;
    let top = panels_top(figure);
    let [left, right] = PANELS.map(|(left, right)| Rect { left, right, top, bottom: top + PANEL_HEIGHT });
    curves::draw(canvas, figure, left)?;
    outcomes::draw(canvas, figure, right)
}

const LEGEND_TYPE: f64 = 13.0;
const SWATCH: f64 = 30.0;

/// Left end and line of each entry of the legend.
fn legend(figure: &Figure) -> Vec<(f64, f64)> {
    let (mut x, mut line) = (MARGIN, 0.0);
    let mut entries = Vec::with_capacity(figure.variants.len());
    for variant in &figure.variants {
        let width = SWATCH + 8.0 + Type::new(LEGEND_TYPE, INK).width(&variant.name) + 26.0;
        if x > MARGIN && x + width > f64::from(WIDTH) - MARGIN {
            (x, line) = (MARGIN, line + 1.0);
        }
        entries.push((x, line));
        x += width;
    }
    entries
}

fn draw_legend(canvas: &Canvas<'_>, figure: &Figure) -> Result<(), PlotError> {
    for (index, (variant, (x, line))) in figure.variants.iter().zip(legend(figure)).enumerate() {
        let look = Look::of(index);
        let y = LEGEND_TOP + LEGEND_LINE * line;
        canvas.dashed(&[(x, y), (x + SWATCH, y)], look.color(), 2.4, look.dash())?;
        canvas.marker(look, (x + SWATCH / 2.0, y), 4.5)?;
        canvas.text(&variant.name, (x + SWATCH + 8.0, y + 4.5), Type::new(LEGEND_TYPE, INK))?;
    }
    Ok(())
}
