//! Values to pixels, and the values that get a mark on an axis.

/// An axis: what lies at its two ends, and where these are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    pub(super) from: f64,
    pub(super) to: f64,
    /// Pixels of `from` and `to`.
    pub(super) pixels: (f64, f64),
    /// Equal distances are equal ratios; both ends are above 0.
    pub(super) log: bool,
}

impl Scale {
    /// Pixel of `value`.
    pub(super) fn place(&self, value: f64) -> f64 {
        let warp = |value: f64| if self.log { value.max(f64::MIN_POSITIVE).ln() } else { value };
        let part = (warp(value) - warp(self.from)) / (warp(self.to) - warp(self.from));
        self.pixels.0 + part * (self.pixels.1 - self.pixels.0)
    }

    /// Whether `value` is on the axis.
    pub(super) fn holds(&self, value: f64) -> bool {
        (self.from..=self.to).contains(&value)
    }
}

/// A mark on an axis.
pub(super) type Tick = (f64, String);

/// The step of 1, 2 or 5 times a power of ten that divides a span into at most `parts`.
fn round_step(span: f64, parts: f64) -> f64 {
    let raw = span / parts;
    let power = 10_f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= raw * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// The multiples of a round step from `from` to `to`, and that step.
fn multiples(from: f64, to: f64) -> (Vec<f64>, f64) {
    const PARTS: f64 = 8.0;
    let step = round_step(to - from, PARTS);
    let (first, last) = ((from / step - 1e-9).ceil(), (to / step + 1e-9).floor());
    ((0..=(last - first).clamp(0.0, PARTS) as u32).map(|i| (first + f64::from(i)) * step).collect(), step)
}

/// Marks for losses.
pub(super) fn loss_ticks(from: f64, to: f64) -> Vec<Tick> {
    let (values, step) = multiples(from, to);
    let decimals = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
    // Adding 0 makes a zero positive.
    values.into_iter().map(|value| (value, format!("{:.decimals$}", value + 0.0))).collect()
}

/// Marks for numbers of tokens.
pub(super) fn token_ticks(from: f64, to: f64, log: bool) -> Vec<Tick> {
    let decades = || (from.log10().floor() as i32..=to.log10().ceil() as i32).map(|power| 10_f64.powi(power));
    let on_axis = |value: &f64| (from..=to).contains(value);
    let values: Vec<f64> = match log {
        false => multiples(from, to).0,
        true => {
            let fine = decades().flat_map(|decade| [decade, 2.0 * decade, 5.0 * decade]).filter(on_axis);
            let fine: Vec<_> = fine.collect();
            if fine.len() <= 8 { fine } else { decades().filter(on_axis).collect() }
        }
    };
    values.into_iter().map(|value| (value, short(value))).collect()
}

/// `2_500_000` as `2.5M`.
fn short(value: f64) -> String {
    const UNITS: [(f64, &str); 4] = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")];
    let (unit, suffix) = UNITS.into_iter().find(|(unit, _)| value.abs() >= *unit).unwrap_or((1.0, ""));
    // Seven digits, without the noise of the division behind them.
    format!("{}{suffix}", (value / unit * 1e6).round() / 1e6)
}

/// Marks for numbers of bytes: powers of two.
pub(super) fn byte_ticks(from: f64, to: f64) -> Vec<Tick> {
    const MOST: i32 = 7;
    let (first, last) = (from.log2().ceil() as i32, to.log2().floor() as i32);
    let step = ((last - first) / MOST + 1).max(1);
    (first..=last)
        .filter(|power| (power - first) % step == 0)
        .map(|power| (2_f64.powi(power), power_of_two_bytes(power)))
        .collect()
}

/// 2 to the `power` as `16 KiB`.
fn power_of_two_bytes(power: i32) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let unit = (power / 10).clamp(0, UNITS.len() as i32 - 1);
    format!("{} {}", 2_f64.powi(power - 10 * unit), UNITS[unit as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(ticks: Vec<Tick>) -> Vec<String> {
        ticks.into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn marks_are_round() {
        assert_eq!(names(loss_ticks(2.313, 2.581)), ["2.35", "2.40", "2.45", "2.50", "2.55"]);
        assert_eq!(names(loss_ticks(-0.1, 10.0)), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(names(token_ticks(0.0, 3.1e6, false)), ["0", "500K", "1M", "1.5M", "2M", "2.5M", "3M"]);
        assert_eq!(names(token_ticks(8e3, 3e5, true)), ["10K", "20K", "50K", "100K", "200K"]);
        assert_eq!(names(token_ticks(1e3, 1e9, true)), ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]);
        assert_eq!(names(byte_ticks(400.0, 9000.0)), ["512 B", "1 KiB", "2 KiB", "4 KiB", "8 KiB"]);
        assert_eq!(names(byte_ticks(1.0, 2e9)).last().unwrap(), "1 GiB");
    }

    #[test]
    fn a_log_scale_places_ratios() {
        let scale = Scale { from: 1.0, to: 100.0, pixels: (50.0, 250.0), log: true };
        assert_eq!([1.0, 10.0, 100.0].map(|value| scale.place(value).round()), [50.0, 150.0, 250.0]);
        assert!(scale.place(0.0).is_finite());
    }

    proptest! {
        #[test]
        fn marks_are_few_in_order_and_different(from in -1e3..1e6_f64, span in 1e-6..1e9_f64) {
            for ticks in [loss_ticks(from, from + span), token_ticks(from.abs(), from.abs() + span, false)] {
                prop_assert!((1..=9).contains(&ticks.len()), "{:?}", ticks);
                prop_assert!(ticks.is_sorted_by(|a, b| a.0 < b.0));
            }
            let ticks = byte_ticks(from.abs() + 1.0, from.abs() + 1.0 + span);
            prop_assert!(ticks.len() <= 8, "{:?}", ticks);
        }
    }
}
