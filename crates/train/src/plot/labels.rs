//! Finds a place beside each point for its name, so that names cover neither each other nor a point.

use super::canvas::Point;

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rect {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
}

impl Rect {
    fn around(center: Point, width: f64, height: f64) -> Self {
        let (x, y) = center;
        Self {
            left: x - width / 2.0,
            right: x + width / 2.0,
            top: y - height / 2.0,
            bottom: y + height / 2.0,
        }
    }

    pub(super) fn width(&self) -> f64 {
        self.right - self.left
    }

    pub(super) fn height(&self) -> f64 {
        self.bottom - self.top
    }

    pub(super) fn center(&self) -> Point {
        ((self.left + self.right) / 2.0, (self.top + self.bottom) / 2.0)
    }

    /// Area that both cover.
    fn overlap(&self, other: &Self) -> f64 {
        let width = self.right.min(other.right) - self.left.max(other.left);
        let height = self.bottom.min(other.bottom) - self.top.max(other.top);
        width.max(0.0) * height.max(0.0)
    }

    fn holds(&self, (x, y): Point) -> bool {
        (self.left..=self.right).contains(&x) && (self.top..=self.bottom).contains(&y)
    }
}

/// A point and the size of its name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    pub(super) point: Point,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// Width and height that a marker takes.
const MARKER: f64 = 16.0;

/// A place for each name within `frame`, away from the line through `line` where there is room.
///
/// Every name starts at its best place by itself; then each in turn moves to the place that is best given the others,
/// until none moves.
pub(super) fn place(named: &[Named], line: &[Point], frame: Rect) -> Vec<Rect> {
    const ROUNDS: usize = 8;
    let line = sampled(line);
    let markers: Vec<_> = named.iter().map(|name| Rect::around(name.point, MARKER, MARKER)).collect();
    let mut places: Vec<_> = named.iter().map(|name| candidates(name)[0].0).collect();
    for _ in 0..ROUNDS {
        let mut moved = false;
        for (index, name) in named.iter().enumerate() {
            let others =
                || places.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, place)| place);
            let cost = |place: &Rect, preference: f64| {
                let outside = place.width() * place.height() - place.overlap(&frame);
                let on_markers: f64 = markers.iter().map(|marker| place.overlap(marker)).sum();
                let on_names: f64 = others().map(|other| touching(place.overlap(other))).sum();
                let on_line = line.iter().filter(|point| place.holds(**point)).count() as f64;
                let leader = leader(name, place).map(|leader| sampled(&leader)).unwrap_or_default();
                let crosses = |other: &&Rect| leader.iter().any(|point| other.holds(*point));
                let crossed = others().filter(crosses).count() as f64;
                preference + 20.0 * outside + 4.0 * on_markers + on_names + 2.0 * on_line + 30.0 * crossed
            };
            let all = candidates(name).into_iter();
            let all = all.map(|(place, preference)| (cost(&place, preference), place));
            if let Some((_, best)) = all.min_by(|a, b| a.0.total_cmp(&b.0)) {
                moved |= best != places[index];
                places[index] = best;
            }
        }
        if !moved {
            break;
        }
    }
    places
}

/// Cost of covering an area of another name: even a little is worse than a place further away.
fn touching(area: f64) -> f64 {
    if area > 0.0 { 60.0 + 6.0 * area } else { 0.0 }
}

/// A line from a point to its name, where the name is not beside it.
pub(super) fn leader(name: &Named, place: &Rect) -> Option<[Point; 2]> {
    const BESIDE: f64 = MARKER / 2.0 + 6.0;
    let (x, y) = name.point;
    let nearest =
        (x.clamp(place.left - 2.0, place.right + 2.0), y.clamp(place.top - 1.0, place.bottom + 1.0));
    ((nearest.0 - x).hypot(nearest.1 - y) > BESIDE).then_some([name.point, nearest])
}

/// Heights as near as may be to `wanted`, which is in ascending order, but `apart` from each other and between `low` and
/// `high` as long as there is room.
pub(super) fn spread(wanted: &[f64], apart: f64, low: f64, high: f64) -> Vec<f64> {
    // Neighbours that are too near become one group around their mean, which may then touch the next group.
    let mut groups: Vec<(f64, usize)> = Vec::new();
    for &height in wanted {
        let (mut center, mut count) = (height, 1);
        loop {
            let half = apart * (count - 1) as f64 / 2.0;
            center = center.min(high - half).max(low + half);
            let near =
                groups.pop_if(|(before, many)| center - *before < apart * (*many + count) as f64 / 2.0);
            let Some((before, many)) = near else { break };
            center = (before * many as f64 + center * count as f64) / (many + count) as f64;
            count += many;
        }
        groups.push((center, count));
    }
    let heights = |(center, count): (f64, usize)| {
        (0..count).map(move |i| center + apart * (i as f64 - (count - 1) as f64 / 2.0))
    };
    groups.into_iter().flat_map(heights).collect()
}

/// Places around a point, near ones first, with what it costs to choose each.
fn candidates(name: &Named) -> Vec<(Rect, f64)> {
    const DIRECTIONS: [(f64, f64); 8] = [
        (1.0, 0.0),
        (0.0, -1.0),
        (0.0, 1.0),
        (-1.0, 0.0),
        (0.8, -0.8),
        (0.8, 0.8),
        (-0.8, -0.8),
        (-0.8, 0.8),
    ];
    const GAPS: [f64; 4] = [2.0, 12.0, 24.0, 38.0];
    let (x, y) = name.point;
    let mut all = Vec::with_capacity(DIRECTIONS.len() * GAPS.len());
    for (ring, gap) in GAPS.into_iter().enumerate() {
        for (order, (dx, dy)) in DIRECTIONS.into_iter().enumerate() {
            let away = (MARKER / 2.0 + gap, MARKER / 2.0 + gap);
            let center = (x + dx * (away.0 + name.width / 2.0), y + dy * (away.1 + name.height / 2.0));
            let preference = 40.0 * ring as f64 + 3.0 * order as f64;
            all.push((Rect::around(center, name.width, name.height), preference));
        }
    }
    all
}

/// Points every few pixels along a line.
fn sampled(line: &[Point]) -> Vec<Point> {
    const EVERY: f64 = 3.0;
    let mut points = Vec::new();
    for ends in line.windows(2) {
        let ((x, y), (to_x, to_y)) = (ends[0], ends[1]);
        let parts = ((to_x - x).hypot(to_y - y) / EVERY).ceil().clamp(1.0, 10_000.0);
        points.extend((0..=parts as u32).map(|i| {
            let part = f64::from(i) / parts;
            (x + part * (to_x - x), y + part * (to_y - y))
        }));
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAME: Rect = Rect { left: 0.0, top: 0.0, right: 540.0, bottom: 380.0 };

    fn named(points: &[Point]) -> Vec<Named> {
        points.iter().map(|&point| Named { point, width: 50.0, height: 14.0 }).collect()
    }

    fn overlaps(places: &[Rect]) -> f64 {
        let pairs = places.iter().enumerate().flat_map(|(i, a)| places[..i].iter().map(|b| a.overlap(b)));
        pairs.sum()
    }

    #[test]
    fn a_lone_name_stands_to_the_right_and_inside() {
        let places = place(&named(&[(100.0, 100.0)]), &[], FRAME);
        assert_eq!((places[0].left, places[0].center().1), (110.0, 100.0));
        let corner = place(&named(&[(535.0, 5.0)]), &[], FRAME)[0];
        assert!(corner.right <= FRAME.right && corner.top >= FRAME.top, "{corner:?}");
    }

    #[test]
    fn names_of_equal_points_are_apart() {
        let places = place(&named(&[(300.0, 200.0); 6]), &[], FRAME);
        assert_eq!(overlaps(&places), 0.0, "{places:?}");
    }

    #[test]
    fn no_names_no_places() {
        assert!(place(&[], &[], FRAME).is_empty());
    }

    #[test]
    fn heights_are_spread_around_their_mean() {
        assert_eq!(spread(&[10.0, 50.0, 51.0, 52.0], 14.0, 0.0, 100.0), [10.0, 37.0, 51.0, 65.0]);
        assert_eq!(spread(&[96.0, 99.0], 14.0, 0.0, 100.0), [86.0, 100.0]);
        assert_eq!(spread(&[1.0, 2.0], 14.0, 0.0, 100.0), [0.0, 14.0]);
        assert!(spread(&[], 14.0, 0.0, 100.0).is_empty());
    }

    proptest! {
        #[test]
        fn spread_heights_are_apart(mut wanted in proptest::collection::vec(0.0..300.0, 0..12)) {
            wanted.sort_by(f64::total_cmp);
            let heights = spread(&wanted, 15.0, 0.0, 300.0);
            prop_assert_eq!(heights.len(), wanted.len());
            prop_assert!(heights.windows(2).all(|pair| pair[1] - pair[0] > 14.999), "{:?}", heights);
            prop_assert!(heights.iter().all(|height| (-1e-9..=300.0 + 1e-9).contains(height)), "{:?}", heights);
        }

        #[test]
        fn seven_names_find_room(points in proptest::collection::vec((20.0..520.0, 20.0..360.0), 7)) {
            let places = place(&named(&points), &points, FRAME);
            prop_assert_eq!(overlaps(&places), 0.0, "{:?}", places);
        }
    }
}
