//! Colours, markers and line styles.

use super::canvas::Point;
use plotters::style::RGBColor;
use std::f64::consts::TAU;

pub(super) const INK: RGBColor = RGBColor(0x1f, 0x24, 0x2b);
pub(super) const FAINT_INK: RGBColor = RGBColor(0x5c, 0x66, 0x70);
pub(super) const FRAME: RGBColor = RGBColor(0xb4, 0xbb, 0xc3);
pub(super) const GRID: RGBColor = RGBColor(0xea, 0xed, 0xf0);
pub(super) const FRONT: RGBColor = RGBColor(0xc3, 0xca, 0xd2);
pub(super) const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xff);

/// The palette of Okabe and Ito (Color Universal Design, 2008) without its yellow, which is lost on white.
const PALETTE: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x40, 0x40, 0x40),
];

/// How the variant at a place in the legend looks. Colours, markers and dashes come round at different times, so that no
/// two of the first 35 look the same.
#[derive(Clone, Copy)]
pub(super) struct Look {
    index: usize,
}

impl Look {
    pub(super) fn of(index: usize) -> Self {
        Self { index }
    }

    pub(super) fn color(self) -> RGBColor {
        PALETTE[self.index % PALETTE.len()]
    }

    /// Lengths of dash and gap; `None` for a solid line.
    pub(super) fn dash(self) -> Option<(f64, f64)> {
        match (self.index / PALETTE.len()) % 3 {
            0 => None,
            1 => Some((7.0, 3.0)),
            _ => Some((2.0, 2.5)),
        }
    }

    /// The outline of the marker around `center`; all have about the same area.
    pub(super) fn marker(self, center: Point, radius: f64) -> Vec<Point> {
        let polygon = |corners: usize, turn: f64, radius: f64| {
            let corner = |i| TAU * (i as f64 / corners as f64 + turn);
            let point = |angle: f64| (center.0 + radius * angle.sin(), center.1 - radius * angle.cos());
            (0..corners).map(|i| point(corner(i))).collect()
        };
        match self.index % 5 {
            0 => polygon(48, 0.0, radius),
            1 => polygon(4, 0.125, 1.25 * radius),
            2 => polygon(3, 0.0, 1.45 * radius),
            3 => polygon(4, 0.0, 1.3 * radius),
            _ => polygon(3, 0.5, 1.45 * radius),
        }
    }
}

/// Pieces of a line that are drawn when `(dash, gap)` alternate along it.
pub(super) fn dashes(points: &[Point], (dash, gap): (f64, f64)) -> Vec<Vec<Point>> {
    let mut pieces = Vec::new();
    let mut piece: Vec<Point> = points.first().copied().into_iter().collect();
    let (mut drawing, mut left) = (true, dash);
    for ends in points.windows(2) {
        let (mut from, to) = (ends[0], ends[1]);
        loop {
            let length = (to.0 - from.0).hypot(to.1 - from.1);
            if length < left {
                left -= length;
                break;
            }
            let part = left / length;
            from = (from.0 + part * (to.0 - from.0), from.1 + part * (to.1 - from.1));
            if drawing {
                piece.push(from);
                pieces.push(std::mem::take(&mut piece));
            } else {
                piece = vec![from];
            }
            drawing = !drawing;
            left = if drawing { dash } else { gap };
        }
        if drawing {
            piece.push(to);
        }
    }
    pieces.push(piece);
    pieces.retain(|piece| piece.len() > 1);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_follow_the_line_round_corners() {
        let corner = [(0.0, 0.0), (10.0, 0.0), (10.0, 10.0)];
        assert_eq!(
            dashes(&corner, (6.0, 3.0)),
            [
                vec![(0.0, 0.0), (6.0, 0.0)],
                vec![(9.0, 0.0), (10.0, 0.0), (10.0, 5.0)],
                vec![(10.0, 8.0), (10.0, 10.0)]
            ]
        );
        assert_eq!(dashes(&[], (6.0, 3.0)), Vec::<Vec<Point>>::new());
        assert_eq!(dashes(&[(1.0, 1.0)], (6.0, 3.0)), Vec::<Vec<Point>>::new());
    }
}
