//! The left panel: loss over tokens.

use super::{
    Figure, PlotError, Variant,
    axes::{Axes, drawable, padded, range},
    canvas::{Canvas, Point, Type},
    labels::{self, Rect},
    scale::{self, Scale},
    style::{INK, Look},
};

/// A curve is drawn with at most so many points: more only show noise.
const POINTS: usize = 160;
/// On a linear axis the first part of training would take all the height; this part of the tokens may leave the top.
const STEEP_PART: f64 = 0.1;
/// Size of a name at the end of its line, and the distance to the next one.
const NAME: f64 = 12.0;
const NAME_APART: f64 = 16.0;
/// Width of a name before it is cut.
const NAME_ROOM: f64 = 112.0;

pub(super) fn draw(canvas: &Canvas<'_>, figure: &Figure, area: Rect) -> Result<(), PlotError> {
    let curves: Vec<_> = figure.variants.iter().map(|variant| smooth(variant, figure.log_tokens)).collect();
    let points = || curves.iter().flatten().copied();
    let (first, last) = range(points().map(|(tokens, _)| tokens)).unwrap_or((1.0, 1e6));
    let from = if figure.log_tokens { first } else { 0.0 };
    let to = if last > from { last } else { from + 1.0 };
    let shown_from = if figure.log_tokens { 0.0 } else { STEEP_PART * last };
    let losses = range(points().filter(|(tokens, _)| *tokens >= shown_from).map(|(_, loss)| loss));
    let (low, high) = padded(losses.unwrap_or((0.0, 1.0)), 0.06, 0.04, 1e-3);

    let axes = Axes {
        area,
        title: "Loss during training",
        x: Scale { from, to, pixels: (area.left, area.right), log: figure.log_tokens },
        y: Scale { from: low, to: high, pixels: (area.bottom, area.top), log: false },
        x_title: "Tokens trained on",
        y_title: "Loss (nats per token)",
        x_ticks: scale::token_ticks(from, to, figure.log_tokens),
        y_ticks: scale::loss_ticks(low, high),
    };
    axes.draw(canvas)?;
    if losses.is_none() {
        return axes.draw_empty(canvas);
    }
    for (index, curve) in curves.iter().enumerate() {
        let look = Look::of(index);
        let line: Vec<_> = curve.iter().map(|&point| axes.place(point)).collect();
        for piece in below(&line, area.top) {
            canvas.dashed(&piece, look.color(), 2.0, look.dash())?;
        }
    }
    draw_names(canvas, figure, &axes, &curves)
}

/// Names the lines at their ends, in the order of their last losses; more than there is room for stay unnamed.
fn draw_names(
    canvas: &Canvas<'_>,
    figure: &Figure,
    axes: &Axes,
    curves: &[Vec<Point>],
) -> Result<(), PlotError> {
    let Rect { top, bottom, right, .. } = axes.area;
    let ends = curves.iter().enumerate().filter_map(|(index, curve)| Some((index, *curve.last()?)));
    let mut ends: Vec<(usize, Point)> = ends.map(|(index, end)| (index, axes.place(end))).collect();
    ends.retain(|(_, (_, y))| (top..=bottom).contains(y));
    ends.sort_by(|(_, a), (_, b)| a.1.total_cmp(&b.1));
    ends.truncate(((bottom - top) / NAME_APART) as usize);
    let wanted: Vec<_> = ends.iter().map(|(_, (_, y))| *y).collect();
    let heights = labels::spread(&wanted, NAME_APART, top, bottom);
    let kind = Type::new(NAME, INK);
    for (&(index, (x, y)), height) in ends.iter().zip(heights) {
        let look = Look::of(index);
        canvas.line(&[(x + 1.0, y), (right + 5.0, y), (right + 19.0, height)], look.color(), 1.0)?;
        canvas.marker(look, (right + 23.0, height), 3.6)?;
        let name = kind.fit(&figure.variants[index].name, NAME_ROOM);
        canvas.text(&name, (right + 32.0, height + 0.36 * NAME), kind)?;
    }
    Ok(())
}

/// The drawable points of a curve, or the means of equal stretches of the axis when there are too many.
fn smooth(variant: &Variant, log: bool) -> Vec<Point> {
    let drawn = variant.curve.iter().filter(|(_, loss)| drawable(*loss));
    let points: Vec<Point> = drawn.map(|&(tokens, loss)| (tokens.max(1) as f64, loss)).collect();
    let Some((first, last)) = range(points.iter().map(|(tokens, _)| *tokens)) else { return points };
    if points.len() <= POINTS || first == last {
        return points;
    }
    let axis = Scale { from: first, to: last, pixels: (0.0, POINTS as f64), log };
    let stretch = |point: &Point| (axis.place(point.0) as usize).min(POINTS - 1);
    points.chunk_by(|a, b| stretch(a) == stretch(b)).map(mean).collect()
}

fn mean(points: &[Point]) -> Point {
    let count = points.len() as f64;
    let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
    (sum.0 / count, sum.1 / count)
}

/// The pieces of a line that are not above the pixel `top`, cut where it crosses.
fn below(line: &[Point], top: f64) -> Vec<Vec<Point>> {
    let mut pieces: Vec<Vec<Point>> = vec![Vec::new()];
    for (index, &point) in line.iter().enumerate() {
        let previous = index.checked_sub(1).map(|before| line[before]);
        let crossing = previous.filter(|previous| (previous.1 < top) != (point.1 < top)).map(|previous| {
            let part = (top - previous.1) / (point.1 - previous.1);
            (previous.0 + part * (point.0 - previous.0), top)
        });
        let visible = point.1 >= top;
        if let Some(piece) = pieces.last_mut() {
            piece.extend(crossing);
            piece.extend(visible.then_some(point));
        }
        if !visible && crossing.is_some() {
            pieces.push(Vec::new());
        }
    }
    pieces.retain(|piece| piece.len() > 1);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_the_top() {
        let line = [(0.0, -10.0), (10.0, 10.0), (20.0, 30.0), (30.0, -10.0), (40.0, -20.0), (50.0, 20.0)];
        assert_eq!(
            below(&line, 0.0),
            [vec![(5.0, 0.0), (10.0, 10.0), (20.0, 30.0), (27.5, 0.0)], vec![(45.0, 0.0), (50.0, 20.0)]]
        );
        assert!(below(&[], 0.0).is_empty());
        assert!(below(&line[3..5], 0.0).is_empty());
    }

    #[test]
    fn a_long_curve_becomes_means_of_all_its_points() {
        let curve: Vec<_> = (1..=1600).map(|i| (i * 10, if i % 2 == 0 { 2.0 } else { 4.0 })).collect();
        let mut variant = Variant { name: String::new(), curve, kv_bytes_per_token: 1, final_loss: 2.0 };
        let smoothed = smooth(&variant, false);
        assert!((150..=POINTS).contains(&smoothed.len()), "{}", smoothed.len());
        assert!(smoothed.iter().all(|(_, loss)| (loss - 3.0).abs() < 0.2));
        assert!(smoothed.is_sorted_by(|a, b| a.0 < b.0));
        assert!(smooth(&variant, true).len() < smoothed.len());

        variant.curve = vec![(1, f64::NAN), (2, 3.0), (3, f64::INFINITY)];
        assert_eq!(smooth(&variant, false), [(2.0, 3.0)]);
    }
}
