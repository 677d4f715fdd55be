//! Deterministic mixing: hashes of integers, a small generator, and a permutation that needs no memory.
//!
//! Written out here and not taken from a random-number crate because checkpoints depend on it: a data
//! order must stay the same when a dependency changes its algorithms.

/// A well-mixed function of one integer (the finaliser of SplitMix64; Steele, Lea and Flood, 2014).
pub fn mix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A well-mixed function of two integers.
pub fn mix2(a: u64, b: u64) -> u64 {
    mix64(mix64(a) ^ b.rotate_left(32))
}

/// SplitMix64: 64 bits of state, enough for choices of words and places.
#[derive(Debug, Clone)]
pub struct SplitMix(u64);

impl SplitMix {
    /// A generator that is a pure function of the seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let value = mix64(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        value
    }

    /// A number below `n` (0 when `n` is 0). The bias is under n / 2^64.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Moves the first `count` items of a random order to the front.
    pub fn shuffle_front<T>(&mut self, items: &mut [T], count: usize) {
        for i in 0..count.min(items.len()) {
            let j = i + self.below(items.len() - i);
            items.swap(i, j);
        }
    }
}

/// A pseudo-random permutation of `0..n`: a balanced Feistel network on the next even number of bits,
/// walked until it lands inside the range (Black and Rogaway, "Ciphers with arbitrary finite domains",
/// 2002, section 3). Takes four walks on average at worst, and no memory.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    n: u64,
    half: u32,
    keys: [u64; 4],
}

impl Permutation {
    /// The permutation of `0..n` that belongs to `key`.
    pub fn new(n: u64, key: u64) -> Self {
        let bits = 64 - n.saturating_sub(1).leading_zeros();
        let half = bits.div_ceil(2).max(1);
        Self { n, half, keys: [0, 1, 2, 3].map(|round| mix2(key, round)) }
    }

    /// Where `i` goes. `i` is taken modulo `n`; an empty range gives 0.
    pub fn at(&self, i: u64) -> u64 {
        if self.n <= 1 {
            return 0;
        }
        let mut x = i % self.n;
        loop {
            x = self.once(x);
            if x < self.n {
                return x;
            }
        }
    }

    fn once(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let (mut left, mut right) = (x >> self.half, x & mask);
        for key in self.keys {
            let next = left ^ (mix64(right ^ key) & mask);
            left = right;
            right = next;
        }
        (left << self.half) | right
    }
}

#[cfg(test)]
mod tests;
