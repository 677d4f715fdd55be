use super::*;

#[test]
fn layout_counts_elements_and_drops_empty_planes() {
    let plane = |name, width| Plane { name, width };
    let layout = CacheLayout::new([plane("latent", 512), plane("k_rope", 64), plane("unused", 0)]).unwrap();
    assert_eq!(layout.planes().len(), 2);
    assert_eq!(layout.elements_per_token(), 576);
    assert_eq!(layout.bytes_per_token(DType::Bf16), 1152);
    // Nine scales of 64 elements each, and a multiple of 16 bytes.
    assert_eq!(layout.bytes_per_token(DType::Fp8), 592);
}

#[test]
fn layout_refuses_duplicates_and_overflow() {
    let plane = |name, width| Plane { name, width };
    assert_eq!(CacheLayout::new([plane("k", 1), plane("k", 2)]), Err(LayoutError::Duplicate("k")));
    assert_eq!(CacheLayout::new([plane("k", usize::MAX), plane("v", 2)]), Err(LayoutError::Overflow));
    assert_eq!(CacheLayout::new([plane("k", usize::MAX / 2)]), Err(LayoutError::Overflow));
}

#[test]
fn step3_attention_intensity_at_8_bit_is_128() {
    // Step-3 report, section 4: 64 heads of 256 on one key/value row.
    let cost =
        Cost { linear_flops: 0, flops_per_context_token: 2 * 64 * 512, elements_per_context_token: 512 };
    assert_eq!(cost.intensity(1.0), 128.0);
}

#[test]
fn numbers_read_well() {
    assert_eq!(units::bytes(1536), "1.5 KiB");
    assert_eq!(units::bytes(7), "7 B");
    assert_eq!(units::count(6_620_000), "6.62M");
    assert_eq!(units::count(999), "999");
    assert_eq!(units::grouped(196_608), "196,608");
    assert_eq!(units::grouped(100), "100");
}

#[test]
fn dtype_names_round_trip() {
    for dtype in [DType::F32, DType::Bf16] {
        assert_eq!(dtype.to_string().parse::<DType>().unwrap(), dtype);
    }
    assert!("f64".parse::<DType>().unwrap_err().to_string().contains("f64"));
}
