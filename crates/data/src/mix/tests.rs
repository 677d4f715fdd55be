use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn permutation_is_a_bijection(n in 1u64..5000, key: u64) {
        let p = Permutation::new(n, key);
        let mut seen = vec![false; n as usize];
        for i in 0..n {
            let j = p.at(i);
            prop_assert!(j < n);
            prop_assert!(!std::mem::replace(&mut seen[j as usize], true));
        }
    }
}

#[test]
fn permutation_handles_the_extremes() {
    assert_eq!(Permutation::new(0, 7).at(3), 0);
    assert_eq!(Permutation::new(1, 7).at(0), 0);
    for n in [u64::MAX, 1 << 63, (1 << 40) + 1] {
        let p = Permutation::new(n, 1);
        assert!((0..1000).all(|i| p.at(i) < n));
    }
}

#[test]
fn permutation_depends_on_the_key_and_looks_shuffled() {
    let (a, b) = (Permutation::new(1000, 1), Permutation::new(1000, 2));
    assert!((0..1000).any(|i| a.at(i) != b.at(i)));
    let stays_near = (0..999u64).filter(|&i| a.at(i).abs_diff(a.at(i + 1)) < 20).count();
    assert!(stays_near < 100, "{stays_near} of 999 neighbours stay neighbours");
}

#[test]
fn generator_is_fixed() {
    // Checkpoints rely on these: a change here changes the data order of every resumed run.
    let mut rng = SplitMix::new(42);
    assert_eq!(rng.next_u64(), mix64(42));
    assert_eq!(mix64(0), 0xe220_a839_7b1d_cdaf);
    assert!((0..1000).all(|_| rng.below(7) < 7));
    assert_eq!(rng.below(0), 0);
}
