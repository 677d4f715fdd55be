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

/// What stands above the panels.
pub(super) struct Head<'a> {
    pub(super) title: &'a str,
    pub(super) subtitle: &'a str,
    /// The entries of the legend.
    pub(super) names: Vec<&'a str>,
    /// Whether an entry stands for a line with markers, or for markers alone.
    pub(super) lines: bool,
}

impl<'a> Head<'a> {
    pub(super) fn of(figure: &'a Figure) -> Self {
        let names = figure.variants.iter().map(|variant| variant.name.as_str()).collect();
        Self { title: &figure.title, subtitle: &figure.subtitle, names, lines: true }
    }

    /// Width and height of the picture in logical pixels; the legend takes as many lines as it needs.
    pub(super) fn size(&self) -> (u32, u32) {
        (WIDTH, (self.panels_top() + PANEL_HEIGHT + BELOW_PANELS).ceil() as u32)
    }

    fn panels_top(&self) -> f64 {
        let lines = legend(&self.names).last().map_or(0.0, |(_, line)| line + 1.0);
        LEGEND_TOP + LEGEND_LINE * lines + ABOVE_PANELS
    }

    /// Draws it and gives the places of the two panels.
    pub(super) fn draw(&self, canvas: &Canvas<'_>) -> Result<[Rect; 2], PlotError> {
        let title = Type::new(20.0, INK).bold();
        let subtitle = Type::new(13.0, FAINT_INK);
        let room = f64::from(WIDTH) - 2.0 * MARGIN;
        canvas.text(&title.fit(self.title, room), (MARGIN, 38.0), title)?;
        canvas.text(&subtitle.fit(self.subtitle, room), (MARGIN, 60.0), subtitle)?;
        self.draw_legend(canvas)?;
        let top = self.panels_top();
        Ok(PANELS.map(|(left, right)| Rect { left, right, top, bottom: top + PANEL_HEIGHT }))
    }

    fn draw_legend(&self, canvas: &Canvas<'_>) -> Result<(), PlotError> {
        for (index, (name, (x, line))) in self.names.iter().zip(legend(&self.names)).enumerate() {
            let look = Look::of(index);
            let y = LEGEND_TOP + LEGEND_LINE * line;
            if self.lines {
                canvas.dashed(&[(x, y), (x + SWATCH, y)], look.color(), 2.4, look.dash())?;
            }
            canvas.marker(look, (x + SWATCH / 2.0, y), 4.5)?;
            canvas.text(name, (x + SWATCH + 8.0, y + 4.5), Type::new(LEGEND_TYPE, INK))?;
        }
        Ok(())
    }
}

pub(super) fn draw(canvas: &Canvas<'_>, figure: &Figure) -> Result<(), PlotError> {
    let [left, right] = Head::of(figure).draw(canvas)?;
    curves::draw(canvas, figure, left)?;
    outcomes::draw(canvas, figure, right)
}

const LEGEND_TYPE: f64 = 13.0;
const SWATCH: f64 = 30.0;

/// Left end and line of each entry of the legend.
fn legend(names: &[&str]) -> Vec<(f64, f64)> {
    let (mut x, mut line) = (MARGIN, 0.0);
    let mut entries = Vec::with_capacity(names.len());
    for name in names {
        let width = SWATCH + 8.0 + Type::new(LEGEND_TYPE, INK).width(name) + 26.0;
        if x > MARGIN && x + width > f64::from(WIDTH) - MARGIN {
            (x, line) = (MARGIN, line + 1.0);
        }
        entries.push((x, line));
        x += width;
    }
    entries
}
