//! Softmax over blocks of scores: keys down, columns across, so that every lane is a column of its own.
//!
//! Scores are logarithms to base 2: the queries are packed with log2(e) in their scale.

use super::block::Columns;
use pulp::Simd;
use std::ops::Range;

/// `2^x` for `x` up to about 127, within 2e-7; exactly 0 from -127 down, so that masked scores (-inf) count nothing.
///
/// Rounds `x` to an integer by adding 1.5 * 2^23, which leaves that integer in the low bits, and shifts it to the
/// exponent; the fraction goes through a minimax polynomial.
#[inline(always)]
pub(super) fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const ROUND: f32 = 12_582_912.0;
    // Near ln(2), but the fit's own.
    #[allow(clippy::approx_constant)]
    const POLYNOMIAL: [f32; 6] = [1.326_472_7e-3, 9.671_513e-3, 5.550_733_6e-2, 0.240_222_42, 0.693_147, 1.0];
    // In this order NaN comes through.
    let x = simd.max_f32s(simd.splat_f32s(-127.0), x);
    let rounded = simd.add_f32s(x, simd.splat_f32s(ROUND));
    let fraction = simd.sub_f32s(x, simd.sub_f32s(rounded, simd.splat_f32s(ROUND)));
    let mut power = simd.splat_f32s(POLYNOMIAL[0]);
    for c in &POLYNOMIAL[1..] {
        power = simd.mul_add_e_f32s(power, fraction, simd.splat_f32s(*c));
    }
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(power), exponent))
}

#[inline(always)]
fn load<S: Simd>(from: &[f32], start: usize) -> S::f32s {
    let from = &from[start..start + S::F32_LANES];
    // SAFETY: the slice is one vector long.
    unsafe { from.as_ptr().cast::<S::f32s>().read_unaligned() }
}

#[inline(always)]
fn store<S: Simd>(to: &mut [f32], start: usize, values: S::f32s) {
    let to = &mut to[start..start + S::F32_LANES];
    // SAFETY: the slice is one vector long.
    unsafe { to.as_mut_ptr().cast::<S::f32s>().write_unaligned(values) }
}

/// The keys that a block of scores is about and what hides some of them.
pub(super) struct Scores<'a> {
    /// Keys, counted as positions are.
    pub(super) keys: Range<usize>,
    /// Columns of the block, padded; the distance of its rows.
    pub(super) columns: usize,
    pub(super) mask: Option<&'a Columns>,
}

/// One vector of columns: what masks and biases it.
struct Lane<S: Simd> {
    position: S::f32s,
    first: S::f32s,
    slope: S::f32s,
}

impl<S: Simd> Lane<S> {
    #[inline(always)]
    fn new(simd: S, mask: Option<&Columns>, start: usize) -> Self {
        match mask {
            Some(mask) => Self {
                position: load::<S>(&mask.position, start),
                first: load::<S>(&mask.first, start),
                slope: load::<S>(&mask.slope, start),
            },
            None => {
                let zero = simd.splat_f32s(0.0);
                Self { position: zero, first: zero, slope: zero }
            }
        }
    }

    /// The biased score of `key`, -inf where it is hidden.
    #[inline(always)]
    fn apply(&self, simd: S, key: usize, score: S::f32s) -> S::f32s {
        let key = simd.splat_f32s(key as f32);
        let biased = simd.mul_add_e_f32s(self.slope, simd.sub_f32s(key, self.position), score);
        let seen = simd.and_m32s(
            simd.less_than_or_equal_f32s(self.first, key),
            simd.less_than_or_equal_f32s(key, self.position),
        );
        simd.select_f32s(seen, biased, simd.splat_f32s(f32::NEG_INFINITY))
    }
}

impl Scores<'_> {
    /// How many of the keys any column of the vector at `start` sees; later ones are zero without looking.
    #[inline(always)]
    fn seen(&self, start: usize, lanes: usize) -> usize {
        let Some(mask) = self.mask else { return self.keys.len() };
        let last = mask.position[start..start + lanes]
            .iter()
            .fold(-1.0f32, |last, x| if *x > last { *x } else { last });
        ((last + 1.0) as usize).saturating_sub(self.keys.start).min(self.keys.len())
    }

    /// One step of online softmax: scores become `2^(score - max)` for the new running maxima, `sum` runs along, and
    /// `factor` tells by how much what was summed up before shrinks.
    #[inline(always)]
    pub(super) fn absorb<S: Simd>(
        &self,
        simd: S,
        scores: &mut [f32],
        max: &mut [f32],
        sum: &mut [f32],
        factor: &mut [f32],
    ) {
        for start in (0..self.columns).step_by(S::F32_LANES) {
            match self.mask {
                None => self.absorb_lane::<S, false>(simd, start, scores, max, sum, factor),
                Some(_) => self.absorb_lane::<S, true>(simd, start, scores, max, sum, factor),
            }
        }
    }

    #[inline(always)]
    fn absorb_lane<S: Simd, const MASKED: bool>(
        &self,
        simd: S,
        start: usize,
        scores: &mut [f32],
        max: &mut [f32],
        sum: &mut [f32],
        factor: &mut [f32],
    ) {
        let (row, seen) = (self.columns, self.seen(start, S::F32_LANES));
        let lane = Lane::new(simd, self.mask, start);
        let old = load::<S>(max, start);
        // Four maxima hide the latency of each.
        let mut tops = [old; 4];
        for j in (0..seen).step_by(tops.len()) {
            for (i, top) in tops.iter_mut().enumerate() {
                // The last key may be looked at again, which changes no maximum; its mask has been applied by then.
                let again = j + i >= seen;
                let at = (j + i).min(seen - 1) * row + start;
                let mut score = load::<S>(scores, at);
                if MASKED && !again {
                    score = lane.apply(simd, self.keys.start + j + i, score);
                    store::<S>(scores, at, score);
                }
                *top = simd.max_f32s(*top, score);
            }
        }
        let new = simd.max_f32s(simd.max_f32s(tops[0], tops[1]), simd.max_f32s(tops[2], tops[3]));
        // A column that has seen no key yet: any finite maximum keeps -inf - max from being NaN.
        let none = simd.equal_f32s(new, simd.splat_f32s(f32::NEG_INFINITY));
        let base = simd.select_f32s(none, simd.splat_f32s(0.0), new);
        let shrink = exp2(simd, simd.sub_f32s(old, base));
        let mut total = simd.mul_f32s(load::<S>(sum, start), shrink);
        for j in 0..seen {
            let weight = exp2(simd, simd.sub_f32s(load::<S>(scores, j * row + start), base));
            total = simd.add_f32s(total, weight);
            store::<S>(scores, j * row + start, weight);
        }
        for j in seen..self.keys.len() {
            store::<S>(scores, j * row + start, simd.splat_f32s(0.0));
        }
        store::<S>(max, start, new);
        store::<S>(sum, start, total);
        store::<S>(factor, start, shrink);
    }

    /// Scores become probabilities P for the given log-sum-exps (base 2), and `slopes`, which comes as dP, becomes
    /// `dS = P * (dP - delta)`.
    #[inline(always)]
    pub(super) fn differentiate<S: Simd>(
        &self,
        simd: S,
        scores: &mut [f32],
        slopes: &mut [f32],
        lse: &[f32],
        delta: &[f32],
    ) {
        for start in (0..self.columns).step_by(S::F32_LANES) {
            match self.mask {
                None => self.differentiate_lane::<S, false>(simd, start, scores, slopes, lse, delta),
                Some(_) => self.differentiate_lane::<S, true>(simd, start, scores, slopes, lse, delta),
            }
        }
    }

    #[inline(always)]
    fn differentiate_lane<S: Simd, const MASKED: bool>(
        &self,
        simd: S,
        start: usize,
        scores: &mut [f32],
        slopes: &mut [f32],
        lse: &[f32],
        delta: &[f32],
    ) {
        let (row, seen) = (self.columns, self.seen(start, S::F32_LANES));
        let lane = Lane::new(simd, self.mask, start);
        let (lse, delta) = (load::<S>(lse, start), load::<S>(delta, start));
        for j in 0..seen {
            let at = j * row + start;
            let mut score = load::<S>(scores, at);
            if MASKED {
                score = lane.apply(simd, self.keys.start + j, score);
            }
            let p = exp2(simd, simd.sub_f32s(score, lse));
            let mut slope = simd.sub_f32s(load::<S>(slopes, at), delta);
            if MASKED {
                // What a trimmed product left out is not even a number.
                let hidden = simd.equal_f32s(score, simd.splat_f32s(f32::NEG_INFINITY));
                slope = simd.select_f32s(hidden, simd.splat_f32s(0.0), slope);
            }
            store::<S>(scores, at, p);
            store::<S>(slopes, at, simd.mul_f32s(p, slope));
        }
        for j in seen..self.keys.len() {
            store::<S>(scores, j * row + start, simd.splat_f32s(0.0));
            store::<S>(slopes, j * row + start, simd.splat_f32s(0.0));
        }
    }
}
