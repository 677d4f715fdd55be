//! The right panel: final loss over KV cache.

use super::{
    Figure, PlotError,
    axes::{Axes, drawable, padded, range},
    canvas::{Align, Canvas, Point, Type},
    labels::{self, Named, Rect},
    scale::{self, Scale},
    style::{FAINT_INK, FRONT, INK, Look},
};

const NAME: f64 = 13.0;

pub(super) fn draw(canvas: &Canvas<'_>, figure: &Figure, area: Rect) -> Result<(), PlotError> {
    // With their places in the legend, since a diverged variant has no point.
    let outcomes: Vec<(usize, Point)> = figure
        .variants
        .iter()
        .enumerate()
        .filter(|(_, variant)| drawable(variant.final_loss))
        .map(|(index, variant)| (index, (variant.kv_bytes_per_token.max(1) as f64, variant.final_loss)))
        .collect();
    let values: Vec<Point> = outcomes.iter().map(|(_, point)| *point).collect();
    let bytes = range(values.iter().map(|(bytes, _)| bytes.log2())).unwrap_or((10.0, 14.0));
    let (low_power, high_power) = padded(bytes, 0.12, 0.16, 2.0);
    let (from, to) = (low_power.exp2(), high_power.exp2());
    let losses = range(values.iter().map(|(_, loss)| *loss));
    let (low, high) = padded(losses.unwrap_or((0.0, 1.0)), 0.16, 0.14, 0.01);

    let axes = Axes {
        area,
        title: "Final loss against KV cache",
        x: Scale { from, to, pixels: (area.left, area.right), log: true },
        y: Scale { from: low, to: high, pixels: (area.bottom, area.top), log: false },
        x_title: "KV cache (bytes per token, all layers)",
        y_title: "Validation loss (nats per token)",
        x_ticks: scale::byte_ticks(from, to),
        y_ticks: scale::loss_ticks(low, high),
    };
    axes.draw(canvas)?;
    if outcomes.is_empty() {
        return axes.draw_empty(canvas);
    }
    let front: Vec<Point> = pareto_front(&values).into_iter().map(|value| axes.place(value)).collect();
    canvas.line(&front, FRONT, 3.0)?;
    let hint = Type::new(12.0, FAINT_INK).align(Align::Right);
    canvas.text("lower left is better; grey: Pareto front", (area.right, area.top - 16.0), hint)?;

    let kind = Type::new(NAME, INK).align(Align::Center);
    let named: Vec<_> = outcomes
        .iter()
        .map(|&(index, value)| Named {
            point: axes.place(value),
            width: kind.width(&figure.variants[index].name),
            height: NAME,
        })
        .collect();
    let places = labels::place(&named, &front, area);
    for (name, place) in named.iter().zip(&places) {
        if let Some(leader) = labels::leader(name, place) {
            canvas.line(&leader, FRONT, 1.0)?;
        }
    }
    for (&(index, value), place) in outcomes.iter().zip(&places) {
        canvas.marker(Look::of(index), axes.place(value), 6.0)?;
        let (x, y) = place.center();
        canvas.text(&figure.variants[index].name, (x, y + 0.36 * NAME), kind)?;
    }
    Ok(())
}

/// The points that no other one beats in one value without losing in the other, from left to right.
fn pareto_front(points: &[Point]) -> Vec<Point> {
    let mut sorted = points.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut front: Vec<Point> = Vec::new();
    for point in sorted {
        if front.last().is_none_or(|last| point.1 < last.1) {
            front.push(point);
        }
    }
    front
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_front_is_what_nothing_beats() {
        let points = [(4.0, 2.0), (1.0, 3.0), (2.0, 3.0), (1.0, 3.5), (8.0, 2.0), (2.0, 2.5)];
        assert_eq!(pareto_front(&points), [(1.0, 3.0), (2.0, 2.5), (4.0, 2.0)]);
        assert!(pareto_front(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn every_point_is_on_the_front_or_beaten_by_it(
            points in proptest::collection::vec((0..9_u8, 0..9_u8), 0..20)
        ) {
            let points: Vec<Point> = points.into_iter().map(|(x, y)| (x.into(), y.into())).collect();
            let front = pareto_front(&points);
            for point in points {
                prop_assert!(front.iter().any(|best| best.0 <= point.0 && best.1 <= point.1));
            }
        }
    }
}
