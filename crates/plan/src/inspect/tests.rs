use super::*;
use crate::{KvDtype, PRESETS, Target};
use keyfold_core::DType;
use keyfold_model::{
    Cache,
    attention::{DESIGNS, Scale},
};
use keyfold_tensor::Arena;
use serde_json::json;

fn told(name: &str, context: u64, kv: KvDtype) -> Inspection {
    inspect(&Target::open(name).unwrap(), &Workload::new(context, 1, kv).unwrap()).unwrap()
}

fn bytes(name: &str) -> u64 {
    told(name, 8192, KvDtype::Bf16).kv_bytes_per_token
}

#[test]
fn the_papers_caches_come_out() {
    // arXiv 2412.19255: 7B mixture of experts and 1B dense, at 16 bit.
    let [mha, mla, mfa, kr] = ["mha", "mla", "mfa", "mfa-kr"].map(|kind| bytes(&format!("paper-7b-{kind}")));
    assert_eq!([mha, mla, mfa, kr], [196_608, 55_296, 24_576, 12_288]);
    let less = |a: u64, b: u64| (1000.0 * (1.0 - a as f64 / b as f64)).round() / 10.0;
    assert_eq!((less(mfa, mla), less(mfa, mha)), (55.6, 87.5));
    assert_eq!(1.0 - kr as f64 / mha as f64, 0.9375);
    assert_eq!(
        ["mha", "mfa", "mfa-kr"].map(|kind| bytes(&format!("paper-1b-{kind}"))),
        [163_840, 20_480, 10_240]
    );
}

#[test]
fn the_papers_models_are_of_one_size() {
    for (size, billions, active) in [("1b", 1.0, 1.0), ("7b", 6.9, 1.2)] {
        for kind in ["mha", "mla", "mfa", "mfa-kr"] {
            let told = told(&format!("paper-{size}-{kind}"), 8192, KvDtype::Bf16);
            let near = |count: u64, billions: f64| (count as f64 / 1e9 / billions - 1.0).abs() < 0.06;
            assert!(
                near(told.params_total, billions) && near(told.params_active, active),
                "{kind}: {told:?}"
            );
            let mha = self::told(&format!("paper-{size}-mha"), 8192, KvDtype::Bf16).params_total as f64;
            assert!((told.params_total as f64 / mha - 1.0).abs() < 0.01, "{kind}");
        }
    }
}

#[test]
fn published_models_have_their_published_sizes() {
    // Billions of parameters, in all and active, to as many digits as their publishers give.
    for (name, total, active) in [
        ("step-3", 316.29, 37.9),
        ("deepseek-v3", 671.03, 36.6),
        ("kimi-k2", 1026.0, 31.7),
        ("qwen3-235b-a22b", 235.09, 21.6),
        ("qwen3-32b", 32.76, 32.0),
        ("llama-2-7b", 6.74, 6.61),
        ("llama-3-8b", 8.03, 7.5),
        ("llama-3-70b", 70.55, 69.5),
        ("mistral-7b", 7.24, 7.11),
        ("gemma-3-27b", 27.01, 27.01),
        ("tpa-1.5b", 1.55, 1.55),
    ] {
        let told = told(name, 4096, KvDtype::Bf16);
        let billions = |count: u64| count as f64 / 1e9;
        assert!((billions(told.params_total) / total - 1.0).abs() < 0.005, "{name}: {}", told.params_total);
        assert!((billions(told.params_active) / active - 1.0).abs() < 0.01, "{name}: {}", told.params_active);
    }
    let step3 = told("step-3", 8192, KvDtype::Bf16);
    assert_eq!(format!("{:.2}", step3.params_total as f64 / 1e9), "316.29");
}

#[test]
fn step_3_and_deepseek_v3_have_the_reports_capacity_and_intensity() {
    let step3 = told("step-3", 8192, KvDtype::Bf16);
    assert_eq!(step3.layers.len(), 61);
    assert!(step3.layers.iter().all(|layer| layer.kv_bytes_per_token == 1024));
    assert!(step3.layers.iter().all(|layer| layer.total_effective_rank == 16_384));
    let eight_bit = |name| told(name, 8192, KvDtype::Fp8);
    assert_eq!(eight_bit("step-3").arithmetic_intensity, 128.0);
    let deepseek = eight_bit("deepseek-v3");
    let elements: usize = deepseek.layers[0].planes.iter().map(|plane| plane.width).sum();
    assert_eq!((elements, deepseek.layers[0].total_effective_rank), (576, 16_384));
    assert_eq!(deepseek.arithmetic_intensity, 512.0);
    // The rope key has no part in the weighted sum.
    assert_eq!(deepseek.arithmetic_intensity_computed, 2.0 * 128.0 * (576.0 + 512.0) / 576.0);
    let qwen = eight_bit("qwen3-235b-a22b");
    assert_eq!((qwen.arithmetic_intensity, qwen.layers[0].total_effective_rank), (32.0, 8_192));
}

#[test]
fn costs_of_a_decoded_token_are_those_of_the_step_3_report() {
    // arXiv 2507.19427: bytes of an 8-bit cache, FLOPs of attention, projections, MLPs. `whole` is what the report's
    // convention of whole rows adds to MLA's attention, and the only deviation above 2 %; docs/concepts/cost.md tells why.
    let whole = 1152.0 / 1088.0;
    for (name, context, kv, attention, linear, mlp, convention) in [
        ("deepseek-v3", 8192, 2.88e8, 1.47e11, 2.28e10, 4.84e10, whole),
        ("kimi-k2", 8192, 2.88e8, 7.37e10, 1.23e10, 4.84e10, whole),
        ("qwen3-235b-a22b", 8192, 7.89e8, 2.52e10, 1.34e10, 2.84e10, 1.0),
        ("qwen3-32b", 8192, 1.07e9, 1.72e10, 1.21e10, 5.03e10, 1.0),
        ("step-3", 8192, 2.56e8, 3.27e10, 2.07e10, 5.33e10, 1.0),
        ("deepseek-v3", 32_768, 1.15e9, 5.89e11, 2.28e10, 4.84e10, whole),
        ("qwen3-235b-a22b", 32_768, 3.15e9, 1.01e11, 1.34e10, 2.84e10, 1.0),
        ("step-3", 32_768, 1.02e9, 1.31e11, 2.07e10, 5.33e10, 1.0),
    ] {
        let told = told(name, context, KvDtype::Fp8);
        let flops = &told.flops;
        for (what, own, report) in [
            ("cache", told.kv_bytes_of_context as f64, kv),
            ("attention", flops.attention_core as f64 * convention, attention),
            ("linear", flops.attention_linear as f64, linear),
            ("MLP", flops.mlp as f64, mlp),
        ] {
            assert!((own / report - 1.0).abs() < 0.02, "{name} {context} {what}: {own:e}, not {report:e}");
        }
        let all = flops.attention_core + flops.attention_linear + flops.mlp + flops.head;
        assert_eq!(told.flops_per_token, all);
    }
}

#[test]
fn a_cache_takes_what_is_told_for_every_design() {
    for (kind, _) in DESIGNS {
        let attention = AttentionConfig::preset(kind, &Scale::new(64, 16)).unwrap();
        let config: ModelConfig = serde_json::from_value(json!({
            "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96,
            "max_position_embeddings": 128, "attention": attention,
        }))
        .unwrap();
        let cache = Cache::new(&config, 16, DType::Bf16, &Arena::new()).unwrap();
        let target = Target { name: (*kind).to_owned(), source: crate::Source::Preset, config };
        let told = inspect(&target, &Workload::new(16, 1, KvDtype::Bf16).unwrap()).unwrap();
        assert_eq!(told.kv_bytes_per_token, cache.bytes_per_token() as u64, "{kind}");
        assert_eq!(told.kv_bytes_of_context, cache.bytes() as u64, "{kind}");
        let eight = inspect(&target, &Workload::new(16, 1, KvDtype::Fp8).unwrap()).unwrap();
        assert_eq!(2 * eight.kv_bytes_per_token, told.kv_bytes_per_token, "{kind}");
        assert_eq!(told.params_total, target.config.parameters().unwrap() as u64, "{kind}");
    }
}

#[test]
fn windowed_layers_keep_their_window() {
    let gemma = told("gemma-3-27b", 8192, KvDtype::Bf16);
    let local: Vec<_> = gemma.layers.iter().filter(|layer| layer.window == Some(1024)).collect();
    assert_eq!((gemma.layers.len(), local.len()), (62, 52));
    assert_eq!(gemma.kv_bytes_of_context, 8192 * (10 * 8192 + 52 * 1024));
    assert_eq!(gemma.kv_bytes_per_token, 62 * 8192);
    let short = told("gemma-3-27b", 512, KvDtype::Bf16);
    assert_eq!(short.kv_bytes_of_context, 512 * short.kv_bytes_per_token);
    let text = gemma.to_text();
    assert!(text.contains("0-4") && text.contains("1,024") && text.contains("60-61"), "{text}");
}

#[test]
fn neighbours_alike_are_one_line() {
    let text = told("step-3", 8192, KvDtype::Bf16).to_text();
    for line in ["0-3 ", "4-59 ", "60 "] {
        assert!(text.lines().any(|own| own.starts_with(line)), "{line}: {text}");
    }
    assert!(text.contains("2C") && text.contains("16,384") && text.contains("k 256 + v 256"), "{text}");
}

#[test]
fn limits_on_hardware_follow_from_the_figures() {
    let h800 = Hardware::named("H800").unwrap();
    for (name, batch) in [("llama-3-8b", 1), ("step-3", 64), ("deepseek-v3", 256)] {
        let target = Target::open(name).unwrap();
        let told = inspect(&target, &Workload::new(8192, batch, KvDtype::Fp8).unwrap()).unwrap().on(&h800);
        let bound = told.hardware.as_ref().unwrap();
        assert_eq!(bound.weight_bytes, 2.0 * told.params_total as f64);
        let memory = bound.devices as f64 * 80e9;
        let largest = bound.largest_batch.unwrap();
        let taken = |batch: u64| bound.weight_bytes + (batch * told.kv_bytes_of_context) as f64;
        assert!(taken(largest) <= memory && taken(largest + 1) > memory, "{name}");
        assert!(taken(1) > memory - 80e9, "{name}: fewer devices would do");
        // A step takes no less than one read of the caches and of the active weights that all tokens pass.
        let read = taken(batch) - 2.0 * told.params[&Part::Embedding] as f64;
        let least = (read - 2.0 * told.params.get(&Part::Experts).copied().unwrap_or(0) as f64)
            / (3.35e12 * bound.devices as f64);
        assert!(bound.step.seconds >= least * 0.999, "{name}: {} {least}", bound.step.seconds);
        assert_eq!(bound.step.tokens_per_s, batch as f64 / bound.step.seconds);
        assert!(bound.largest.unwrap().tokens_per_s >= bound.step.tokens_per_s || largest < batch, "{name}");
    }
    // DeepSeek-V3's attention is limited by computing on an H20, Step-3's by reading on an H800 (the report, section 4).
    let core = |name: &str, hardware: &str| {
        let bound = told(name, 8192, KvDtype::Fp8).on(&Hardware::named(hardware).unwrap()).hardware.unwrap();
        bound.step.attention_seconds
    };
    let read =
        |name: &str, bandwidth: f64| told(name, 8192, KvDtype::Fp8).kv_bytes_of_context as f64 / bandwidth;
    assert!(core("deepseek-v3", "H20") > 5.0 * read("deepseek-v3", 4e12) / 16.0);
    let devices = 8.0;
    assert!((core("step-3", "H800") * devices / read("step-3", 3.35e12) - 1.0).abs() < 0.2);
}

#[test]
fn contexts_beyond_the_model_are_told_and_absurd_ones_refused() {
    assert!(told("llama-2-7b", 8192, KvDtype::Bf16).notes[0].contains("longest sequence, 4096"));
    assert!(told("step-3", 65_536, KvDtype::Bf16).notes.is_empty());
    for (context, batch) in [(0, 1), (1, 0), (u64::MAX, 1), (1, u64::MAX)] {
        let error = Workload::new(context, batch, KvDtype::Bf16).unwrap_err().to_string();
        assert!(error.contains("expected 1 to"), "{error}");
    }
    // The largest that is accepted gives figures or an error, and no panic.
    for (name, _) in PRESETS {
        let target = Target::open(name).unwrap();
        let most = Workload::new(1 << 32, 1 << 32, KvDtype::Int4).unwrap();
        if let Ok(told) = inspect(&target, &most) {
            assert!(told.on(&Hardware::named("B200").unwrap()).to_text().contains("B200"));
        }
    }
}

#[test]
fn json_holds_what_scripts_read() {
    let json = serde_json::to_value(told("step-3", 8192, KvDtype::Fp8)).unwrap();
    for key in
        ["params_total", "params_active", "kv_bytes_per_token", "flops_per_token", "arithmetic_intensity"]
    {
        assert!(json[key].as_f64().is_some_and(|value| value > 0.0), "{key}");
    }
    let layer = &json["layers"][4];
    assert_eq!((&layer["attention"], &layer["heads"]), (&"mfa".into(), &64.into()));
    assert_eq!(layer["planes"], json!([{"name": "k", "width": 256}, {"name": "v", "width": 256}]));
    assert_eq!(layer["rank_per_head"], 256);
    assert_eq!(layer["shared_latent_dim"], 256);
    assert_eq!(layer["total_effective_rank"], 16_384);
    assert_eq!(json["params"]["experts"], 48u64 * 3 * 7168 * 5120 * 56);
}
