use super::*;

#[test]
fn ridges_are_those_of_the_step_3_report() {
    // FLOP per byte at 8 bits where there are such products (arXiv 2507.19427, section 4).
    for (name, ridge) in [("H800", 591.0), ("H20", 74.0), ("A800", 156.0), ("910B", 175.0)] {
        let hardware = Hardware::named(name).unwrap();
        let own = hardware.flops(KvDtype::Fp8) / hardware.bandwidth;
        assert!((own / ridge - 1.0).abs() < 0.02, "{name}: {own}");
    }
}

#[test]
fn names_are_found_in_any_case_and_listed_when_unknown() {
    assert_eq!(Hardware::named("mi300x").unwrap().name, "MI300X");
    let error = Hardware::named("H1000").unwrap_err().to_string();
    for name in ["H1000", "H100", "H200", "H800", "H20", "A100", "A800", "B200", "910B", "MI300X", "cpu"] {
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn this_machine_is_measured() {
    let cpu = Hardware::named("cpu").unwrap();
    assert!(cpu.bandwidth > 1e8 && cpu.bandwidth < 1e13, "{cpu:?}");
    assert!(cpu.bf16_flops > 1e7 && cpu.f32_flops.unwrap() > 1e7, "{cpu:?}");
}
