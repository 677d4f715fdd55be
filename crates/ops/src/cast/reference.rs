//! Rounding as defined: the nearer of the two neighbours, of two equally near ones the even one.

/// The bf16 bits nearest to the finite `x`.
pub(super) fn nearest(x: f32) -> u16 {
    let below = (x.to_bits() >> 16) as u16;
    let value = |bits: u32| match f32::from_bits(bits) {
        // The value that would follow the largest finite one.
        v if v.is_infinite() => f64::from(v.signum()) * 2f64.powi(128),
        v => f64::from(v),
    };
    let (low, high) = (value(u32::from(below) << 16), value((u32::from(below) + 1) << 16));
    let (to_low, to_high) = ((f64::from(x) - low).abs(), (high - f64::from(x)).abs());
    if to_low < to_high || (to_low == to_high && below.is_multiple_of(2)) { below } else { below + 1 }
}
