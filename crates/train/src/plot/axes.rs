//! The frame of a panel: grid, marks, titles.

use super::{
    PlotError,
    canvas::{Align, Canvas, Point, Type},
    labels::Rect,
    scale::{Scale, Tick},
    style::{FAINT_INK, FRAME, GRID, INK},
};

/// A panel's two axes.
pub(super) struct Axes {
    pub(super) area: Rect,
    pub(super) title: &'static str,
    pub(super) x: Scale,
    pub(super) y: Scale,
    pub(super) x_title: &'static str,
    pub(super) y_title: &'static str,
    pub(super) x_ticks: Vec<Tick>,
    pub(super) y_ticks: Vec<Tick>,
}

impl Axes {
    /// Pixel of a point given in values.
    pub(super) fn place(&self, (x, y): Point) -> Point {
        (self.x.place(x), self.y.place(y))
    }

    /// Draws everything but the contents.
    pub(super) fn draw(&self, canvas: &Canvas<'_>) -> Result<(), PlotError> {
        let Rect { left, top, right, bottom } = self.area;
        let marks = Type::new(12.0, FAINT_INK);
        for (value, name) in self.x_ticks.iter().filter(|(value, _)| self.x.holds(*value)) {
            let x = self.x.place(*value);
            canvas.line(&[(x, top), (x, bottom)], GRID, 1.0)?;
            canvas.line(&[(x, bottom), (x, bottom + 4.0)], FRAME, 1.0)?;
            canvas.text(name, (x, bottom + 19.0), marks.align(Align::Center))?;
        }
        for (value, name) in self.y_ticks.iter().filter(|(value, _)| self.y.holds(*value)) {
            let y = self.y.place(*value);
            canvas.line(&[(left, y), (right, y)], GRID, 1.0)?;
            canvas.text(name, (left - 8.0, y + 4.3), marks.align(Align::Right))?;
        }
        canvas.line(&[(left, top), (left, bottom), (right, bottom)], FRAME, 1.2)?;
        canvas.text(self.title, (left, top - 16.0), Type::new(15.0, INK).bold())?;
        let titles = Type::new(13.0, INK).align(Align::Center);
        let (x, y) = self.area.center();
        canvas.text(self.x_title, (x, bottom + 45.0), titles)?;
        canvas.text(self.y_title, (left - 50.0, y), titles.upwards())
    }

    /// Says in the middle that there is nothing to show.
    pub(super) fn draw_empty(&self, canvas: &Canvas<'_>) -> Result<(), PlotError> {
        canvas.text("no measurements", self.area.center(), Type::new(13.0, FAINT_INK).align(Align::Center))
    }
}

/// Whether a loss has a place in a picture: that of a diverged run has none.
pub(super) fn drawable(loss: f64) -> bool {
    loss.abs() < 1e6
}

/// The least and the greatest of `values`, `None` when there are none.
pub(super) fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((least, most)) => Some((value.min(least), value.max(most))),
    })
}

/// A range with room at both ends, as parts of it, and at least `least` wide.
pub(super) fn padded((from, to): (f64, f64), below: f64, above: f64, least: f64) -> (f64, f64) {
    let missing = (least - (to - from)).max(0.0) / 2.0;
    let (from, to) = (from - missing, to + missing);
    (from - below * (to - from), to + above * (to - from))
}
