//! What `kernel.cu` does, on the host and one token at a time: the kept tokens as a weight and a number of those that have it,
//! found bits by bits, instead of sorted.

use super::Sampler;

/// Buckets of a level, and the first of the bits that tell them.
const LEVELS: [(usize, u32); 3] = [(2048, 19), (1024, 9), (512, 0)];
const FIXED: f64 = (1u64 << 44) as f64;

#[derive(Clone, Copy, Default)]
struct Place {
    weight: u32,
    equal: u32,
    above: f64,
    mass_above: f64,
}

fn weight(bits: u32) -> f64 {
    f64::from(f32::from_bits(bits))
}

/// The weight with which numbers (or else sums) of weights in descending order reach `mark`, or pass it.
fn find(weights: &[u32], by_count: bool, mark: f64, beyond: bool) -> Place {
    let mut place = Place::default();
    let mut prefix = 0;
    for (level, (buckets, shift)) in LEVELS.into_iter().enumerate() {
        let above = if level == 0 { 31 } else { LEVELS[level - 1].1 };
        let mut counts = vec![0u32; buckets];
        let mut mantissas = vec![0u64; buckets];
        for bits in weights.iter().filter(|bits| **bits > 0 && *bits >> above == prefix) {
            let bucket = (bits >> shift) as usize & (buckets - 1);
            counts[bucket] += 1;
            mantissas[bucket] += u64::from(bits & 0x7F_FFFF | 0x80_0000);
        }
        let mass = |bucket: usize| {
            let exponent = if level == 0 { bucket as u32 >> 4 } else { prefix >> (23 - above) };
            mantissas[bucket] as f64 * 2f64.powi(exponent as i32 - 150)
        };
        let measure = |bucket: usize| if by_count { f64::from(counts[bucket]) } else { mass(bucket) };
        let (mut found, mut sum, mut likelier) = (None, place.above, place.mass_above);
        for bucket in (0..buckets).rev().filter(|bucket| counts[*bucket] > 0) {
            found = Some((bucket, sum, likelier));
            sum += measure(bucket);
            likelier += mass(bucket);
            if if beyond { sum > mark } else { sum >= mark } {
                break;
            }
        }
        let (bucket, above, mass_above) = found.expect("a bucket that is not empty");
        prefix = prefix * buckets as u32 + bucket as u32;
        place = Place { weight: prefix, equal: counts[bucket], above, mass_above };
    }
    place
}

/// The token for `point`, from weights of which one is 1.
pub(super) fn draw(sampler: &Sampler, weights: &[f32], point: f64) -> u32 {
    let bits: Vec<u32> = weights.iter().map(|weight| weight.to_bits()).collect();
    let least = sampler.min_p.to_bits().max(1);
    let candidates = bits.iter().filter(|bits| **bits > 0).count();
    let total: f64 = bits.iter().map(|bits| weight(*bits)).sum();
    let likely: f64 = bits.iter().filter(|bits| **bits >= least).map(|bits| weight(*bits)).sum();
    let limit = sampler.top_k.filter(|k| *k < candidates);
    let (mut cut, mut keep, mut kept) = (Place::default(), 0, total);
    if let Some(k) = limit {
        cut = find(&bits, true, k as f64, false);
        keep = k as u32 - cut.above as u32;
        kept = cut.mass_above + f64::from(keep) * weight(cut.weight);
    }
    if sampler.top_p < 1.0 {
        let wanted = f64::from(sampler.top_p) * kept;
        let place = find(&bits, false, wanted, false);
        let one = weight(place.weight);
        let enough = (1..place.equal).find(|n| place.above + f64::from(*n) * one >= wanted);
        let enough = enough.unwrap_or(place.equal);
        keep = if place.weight == cut.weight { keep.min(enough) } else { enough };
        cut = place;
        kept = place.above + f64::from(keep) * one;
        let among = kept.min(likely);
        let mark = (point * among).min(among * (1.0 - 1e-15));
        let drawn = find(&bits, false, mark, true);
        let index = ((mark - drawn.above) / weight(drawn.weight)) as usize;
        let same = bits.iter().enumerate().filter(|(_, bits)| **bits == drawn.weight);
        assert!(drawn.weight >= least && drawn.weight >= cut.weight, "a token that was ruled out");
        return same
            .map(|(token, _)| token as u32)
            .nth(index.min(drawn.equal as usize - 1))
            .expect("a token");
    }
    if least > cut.weight {
        (cut.weight, keep) = (least - 1, 0);
    }
    let mut same = 0;
    let shares: Vec<u64> = bits
        .iter()
        .map(|bits| {
            same += u32::from(*bits == cut.weight);
            let kept = *bits > cut.weight || (*bits == cut.weight && same <= keep);
            if kept { (weight(*bits) * FIXED) as u64 } else { 0 }
        })
        .collect();
    let all: u64 = shares.iter().sum();
    let mark = ((point * all as f64) as u64).min(all - 1);
    let mut sum = 0;
    let passes = |share: &u64| {
        sum += share;
        sum > mark
    };
    shares.iter().position(passes).expect("a token") as u32
}
