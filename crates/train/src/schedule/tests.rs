use super::*;
use proptest::prelude::*;

const COSINE: Schedule = Schedule::Cosine { warmup: 10, final_ratio: 0.1 };
const WSD: Schedule = Schedule::Wsd { warmup: 10, decay_fraction: 0.2, final_ratio: 0.1 };

fn factors(schedule: Schedule, steps: &[u64]) -> Vec<f64> {
    steps.iter().map(|&step| (schedule.factor(step, 110) * 1e9).round() / 1e9).collect()
}

#[test]
fn known_values() {
    assert_eq!(factors(Schedule::Constant {}, &[0, 1, 110, 500]), [1.0; 4]);
    assert_eq!(factors(COSINE, &[0, 1, 5, 10, 60, 110, 500]), [0.1, 0.1, 0.5, 1.0, 0.55, 0.1, 0.1]);
    assert_eq!(factors(WSD, &[0, 1, 5, 10, 88, 99, 110, 500]), [0.1, 0.1, 0.5, 1.0, 1.0, 0.55, 0.1, 0.1]);
}

#[test]
fn no_warmup_starts_at_the_peak() {
    assert_eq!(Schedule::Wsd { warmup: 0, decay_fraction: 0.5, final_ratio: 0.0 }.factor(1, 100), 1.0);
    assert!(Schedule::Cosine { warmup: 0, final_ratio: 0.0 }.factor(1, 100) > 0.999);
}

#[test]
fn reads_toml_and_refuses_what_it_does_not_know() {
    let parse = |text| toml::from_str::<Schedule>(text);
    assert_eq!(parse("kind = 'constant'").unwrap(), Schedule::Constant {});
    assert_eq!(parse("kind = 'cosine'\nwarmup = 10\nfinal_ratio = 0.1").unwrap(), COSINE);
    assert_eq!(parse("kind = 'wsd'\nwarmup = 10\ndecay_fraction = 0.2\nfinal_ratio = 0.1").unwrap(), WSD);
    assert_eq!(toml::to_string(&COSINE).unwrap(), "kind = \"cosine\"\nwarmup = 10\nfinal_ratio = 0.1\n");
    for wrong in [
        "",
        "kind = 'linear'",
        "kind = 'constant'\nwarmup = 10",
        "kind = 'cosine'\nwarmup = 10",
        "kind = 'cosine'\nwarmup = -1\nfinal_ratio = 0.1",
        "kind = 'cosine'\nwarmup = 10\nfinal_ratio = 0.1\nfinal_ration = 0.1",
    ] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn validation_names_the_field() {
    for value in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        let error = Schedule::Cosine { warmup: 1, final_ratio: value }.validate().unwrap_err();
        assert_eq!(error.to_string(), format!("schedule.final_ratio must be from 0 to 1, not {value}"));
        let error =
            Schedule::Wsd { warmup: 1, decay_fraction: value, final_ratio: 0.0 }.validate().unwrap_err();
        assert_eq!(error.field, "decay_fraction");
    }
    assert_eq!(COSINE.validate(), Ok(()));
    assert_eq!(WSD.validate(), Ok(()));
    assert_eq!(Schedule::Constant {}.validate(), Ok(()));
}

fn any_schedule() -> impl Strategy<Value = Schedule> {
    let fraction = || prop_oneof![Just(0.0), Just(1.0), 0.0..=1.0];
    let warmup = || prop_oneof![0_u64..50, Just(u64::MAX)];
    prop_oneof![
        Just(Schedule::Constant {}),
        (warmup(), fraction()).prop_map(|(warmup, final_ratio)| Schedule::Cosine { warmup, final_ratio }),
        (warmup(), fraction(), fraction()).prop_map(|(warmup, decay_fraction, final_ratio)| Schedule::Wsd {
            warmup,
            decay_fraction,
            final_ratio
        }),
    ]
}

proptest! {
    #[test]
    fn a_factor_is_positive_before_the_end_and_never_above_one(
        schedule in any_schedule(),
        total in 0_u64..1000,
        step in prop_oneof![0_u64..1200, Just(u64::MAX)],
    ) {
        let factor = schedule.factor(step, total);
        prop_assert!((0.0..=1.0).contains(&factor), "{factor}");
        prop_assert!(factor > 0.0 || step >= total, "{factor}");
    }

    #[test]
    fn it_rises_then_falls(schedule in any_schedule(), total in 1_u64..300) {
        let factors: Vec<_> = (1..=total).map(|step| schedule.factor(step, total)).collect();
        let peak = factors.iter().copied().fold(0.0, f64::max);
        let (rise, fall) = factors.split_at(factors.iter().position(|&f| f == peak).unwrap());
        prop_assert!(rise.is_sorted());
        prop_assert!(fall.iter().rev().is_sorted_by(|a, b| **a <= **b + 1e-12));
    }
}
