use super::*;
use crate::attention::{AttentionConfig, DESIGNS, Scale};
use keyfold_core::Plane;

fn model(kind: &str, scale: &Scale) -> ModelConfig {
    serde_json::from_value(serde_json::json!({
        "vocab_size": 300, "hidden_size": scale.hidden, "num_hidden_layers": 2, "intermediate_size": 200,
        "max_position_embeddings": 130, "attention": AttentionConfig::preset(kind, scale),
    }))
    .expect("a model")
}

#[test]
fn all_designs_but_tpa_can_be_kept_in_8_bits() {
    let gpu = Device::Cuda(0);
    for (kind, _) in DESIGNS {
        let config = model(kind, &Scale::new(512, 128));
        let layout = config.attention.design().cache_layout().expect("a layout");
        let held = check_blocks(&config, &layout);
        if *kind == "tpa" {
            assert!(held.is_err());
            continue;
        }
        held.unwrap_or_else(|error| panic!("{kind}: {error}"));
        // Elements, a scale for 64 of them, whole 16 bytes.
        let elements = layout.elements_per_token();
        let bytes = PagedCache::bytes_of_a_token(&config, DType::Fp8, gpu).expect("bytes");
        assert_eq!(bytes, 2 * (elements + elements.div_ceil(64)).next_multiple_of(16), "{kind}");
        let bf16 = PagedCache::bytes_of_a_token(&config, DType::Bf16, gpu).expect("bytes");
        assert_eq!(bf16, 2 * 2 * elements.next_multiple_of(8), "{kind}");
    }
}

#[test]
fn planes_that_share_a_block_are_refused_by_name() {
    let config = model("mha", &Scale::new(96, 48));
    let layout =
        CacheLayout::new([Plane { name: "k", width: 96 }, Plane { name: "v", width: 96 }]).expect("a layout");
    let error = check_blocks(&config, &layout).expect_err("96 is no multiple of 64").to_string();
    assert!(error.contains("`k` of a token has 96 elements, no multiple of 64"), "{error}");
}

#[test]
fn the_host_keeps_no_8_bits() {
    let config = model("mfa", &Scale::new(256, 128));
    let error =
        PagedCache::new(&config, 1, 16, DType::Fp8, &Arena::new()).err().expect("no 8 bits").to_string();
    assert!(error.contains("f32 or bf16 on the CPU"), "{error}");
}

#[test]
fn pieces_of_a_gpus_rows_begin_at_whole_16_bytes() {
    let config = model("tpa", &Scale::new(256, 128));
    let (places, width) = placed(&config, DType::Bf16, Device::Cuda(0)).expect("places");
    assert!(places.iter().all(|place| place.start % 8 == 0 && (place.pieces == 1 || place.step % 8 == 0)));
    assert_eq!(width % 8, 0);
    let (_, host) = placed(&config, DType::Bf16, Device::Cpu).expect("places");
    assert_eq!(host, config.attention.design().cache_layout().expect("a layout").elements_per_token());
}
