//! Eight-bit floating point: four bits of exponent, three of mantissa (OCP e4m3; arXiv 2209.05433), without infinities.

/// The largest finite value.
pub const MAX: f32 = 448.0;
const NAN: u8 = 0x7F;
/// Exponent of the smallest normal value.
const LEAST: i32 = -6;

/// The value of `bits`.
pub fn to_f32(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let size = match (exponent, bits & NAN) {
        (_, NAN) => f32::NAN,
        (0, _) => mantissa * 0.125 * 2f32.powi(LEAST),
        (exponent, _) => (1.0 + mantissa * 0.125) * 2f32.powi(exponent - 7),
    };
    if bits & 0x80 == 0 { size } else { -size }
}

/// The nearest value, of two equally near the one with an even mantissa; beyond [`MAX`] the largest.
pub fn from_f32(x: f32) -> u8 {
    let sign = u8::from(x.is_sign_negative()) << 7;
    if x.is_nan() {
        return sign | NAN;
    }
    let size = x.abs().min(MAX);
    let exponent = ((size.to_bits() >> 23) as i32 - 127).max(LEAST);
    // In units of the last bit; a carry goes to the exponent by itself.
    let units = (size * 2f32.powi(3 - exponent)).round_ties_even() as i32;
    sign | (units + ((exponent - LEAST) << 3)) as u8
}
