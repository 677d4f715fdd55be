use super::*;
use proptest::prelude::*;

#[test]
fn who_writes_is_never_kept_waiting() {
    assert_eq!(share(&[1000, 1, 1], 64), [62, 1, 1]);
    assert_eq!(share(&[1, 1, 1], 64), [1, 1, 1]);
}

#[test]
fn a_long_prompt_leaves_room_for_a_short_one() {
    assert_eq!(share(&[10_000, 100], 512), [412, 100]);
    assert_eq!(share(&[10_000, 10_000], 512), [384, 128]);
    assert_eq!(share(&[10_000], 512), [512]);
}

#[test]
fn equal_prompts_are_read_in_turn() {
    assert_eq!(share(&[128; 6], 512), [128, 128, 128, 64, 32, 32]);
    assert_eq!(share(&[128; 3], 256), [128, 96, 32]);
}

proptest! {
    #[test]
    fn shares_are_the_budget_or_all_needs(
        needs in prop::collection::vec(1usize..300, 0..20),
        spare in 0usize..600,
    ) {
        let budget = needs.len() + spare;
        let shares = share(&needs, budget);
        prop_assert_eq!(shares.iter().sum::<usize>(), budget.min(needs.iter().sum()));
        for (share, need) in shares.iter().zip(&needs) {
            prop_assert!(share <= need);
            prop_assert!(*need > 1 || *share == 1);
        }
        // The oldest that reads gets half of what those who write leave.
        if let Some(oldest) = needs.iter().position(|need| *need > 1) {
            let writing = needs.iter().filter(|need| **need == 1).count();
            prop_assert!(shares[oldest] >= needs[oldest].min((budget - writing) / 2));
        }
    }
}
