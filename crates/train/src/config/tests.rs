use super::*;
use keyfold_model::attention::{AttentionConfig, DESIGNS, Scale};
use proptest::prelude::*;

const BASE: &str = r#"
[model]
hidden_size = 64
num_hidden_layers = 2
intermediate_size = 96
max_position_embeddings = 512

[model.attention]
kind = "mfa"
heads = 4
head_dim = 16

[data]
source = "synthetic:stories"

[train]
steps = 10
"#;

fn parse(text: &str, overrides: &[&str]) -> Result<RunConfig, RunConfigError> {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    RunConfig::parse(text, Path::new("run.toml"), &overrides)
}

fn with(overrides: &[&str]) -> RunConfig {
    parse(BASE, overrides).unwrap_or_else(|error| panic!("{overrides:?}: {error}"))
}

fn refusal(overrides: &[&str]) -> String {
    parse(BASE, overrides).err().unwrap_or_else(|| panic!("{overrides:?} was accepted")).to_string()
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = with(&[]);
    assert_eq!(config.train, TrainConfig::of_steps(10));
    assert_eq!((config.data.seq_len, config.data.tokenizer.as_str()), (256, "bytes"));
    assert_eq!((config.data.mask_documents, &config.data.validation), (false, &None));
    assert_eq!((config.model.vocab_size, config.model.tie_word_embeddings), (0, false));
    assert_eq!(config.model.rms_norm_eps, 1e-5);
    let train = &config.train;
    assert_eq!((train.seed, train.batch_size, train.accumulate, train.lr), (0, 8, 1, 1e-3));
    assert_eq!(train.schedule, Schedule::Cosine { warmup: 50, final_ratio: 0.1 });
    let adamw = OptimizerConfig::Adamw { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1 };
    assert_eq!((train.optimizer, train.clip_norm), (adamw, 1.0));
    assert_eq!((train.activation_dtype, train.checkpoint_dtype), (DType::F32, DType::F32));
    assert_eq!((train.log_every, train.eval_every, train.eval_tokens), (10, 200, 65_536));
    assert_eq!((train.save_every, train.keep_checkpoints), (500, 2));
    let muon = with(&["train.optimizer.kind=muon"]).train.optimizer;
    let (betas, eps, weight_decay) = ([0.9, 0.95], 1e-8, 0.1);
    assert_eq!(muon, OptimizerConfig::Muon { momentum: 0.95, lr_ratio: 10.0, betas, eps, weight_decay });
}

#[test]
fn every_design_and_option_survives_being_written() {
    let base = with(&[
        "train.optimizer={ kind = 'muon', momentum = 0.9, lr_ratio = 3, betas = [0.8, 0.9], eps = 1e-9 }",
        "train.schedule={ kind = 'wsd', warmup = 3, decay_fraction = 0.2, final_ratio = 0.0 }",
        "train.activation_dtype=bf16",
        "train.checkpoint_dtype=bf16",
        "train.activation_checkpointing=true",
        "data.source=a \"quoted\" folder/with = signs # and marks",
        "data.validation=elsewhere.txt",
        "data.mask_documents=true",
        "model.init.std=0.1",
    ]);
    for (kind, _) in DESIGNS {
        let attention = AttentionConfig::preset(kind, &Scale::new(64, 16)).unwrap();
        let mut config = base.clone();
        config.model.attention = attention;
        let text = config.to_toml().unwrap();
        assert_eq!(parse(&text, &[]).unwrap(), config, "{text}");
        // Through an override, it goes by way of a table.
        assert_eq!(parse(&text, &["train.steps=10"]).unwrap(), config, "{text}");
    }
}

#[test]
fn overrides_are_typed() {
    assert_eq!(with(&["train.lr=3e-3"]).train.lr, 3e-3);
    assert_eq!(with(&["train.lr=2"]).train.lr, 2.0);
    assert_eq!(with(&["train.steps=1_000"]).train.steps, 1000);
    assert_eq!(with(&[" train . steps = 7 "]).train.steps, 7);
    assert!(with(&["data.mask_documents=true"]).data.mask_documents);
    assert_eq!(with(&["data.tokenizer=bpe:1024"]).data.tokenizer, "bpe:1024");
    assert_eq!(with(&["data.tokenizer=\"bpe:1024\""]).data.tokenizer, "bpe:1024");
    assert_eq!(with(&["data.source=/some/place=x.txt"]).data.source, "/some/place=x.txt");
    assert_eq!(with(&["data.source=two\nlines = 1"]).data.source, "two\nlines = 1");
    assert_eq!(with(&["data.source=1\nlines = 1"]).data.source, "1\nlines = 1");
    let adamw = |betas, weight_decay| OptimizerConfig::Adamw { betas, eps: 1e-8, weight_decay };
    let arrays = with(&["train.optimizer.kind=adamw", "train.optimizer.betas=[0.8, 0.99]"]);
    assert_eq!(arrays.train.optimizer, adamw([0.8, 0.99], 0.1));
    let table = with(&["train.optimizer={ kind = \"adamw\", weight_decay = 0 }"]);
    assert_eq!(table.train.optimizer, adamw([0.9, 0.95], 0.0));
    assert_eq!(with(&["train.schedule={ kind = 'constant' }"]).train.schedule, Schedule::Constant {});
    // The last one wins.
    assert_eq!(with(&["train.seed=1", "train.seed=2"]).train.seed, 2);
    let attention = with(&["model.attention.heads=8"]).model.attention;
    assert_eq!(attention.design().heads(), 8);
}

#[test]
fn overrides_that_cannot_be_applied_are_named() {
    for (given, told) in [
        ("train.lr", "--set train.lr: expected key=value, such as train.lr=0.001"),
        ("=1", "--set =1: the key is empty"),
        ("train.=1", "--set train.=1: the key is empty"),
        ("train.lr.x=1", ""),
        ("data.source.x=1", "--set data.source.x=1: `source` is a value, not a table"),
        ("train.speed=1", "speed"),
        ("optimizer.kind=muon", "optimizer"),
        ("train..lr=1", "run.toml"),
        ("train.steps=many", "train.steps"),
        ("train.steps=-1", "train.steps"),
        ("train.steps=1.5", "train.steps"),
        ("train.lr=[1]", "train.lr"),
        ("train.lr=", "train.lr"),
        ("train.optimizer.kind=sgd", "sgd"),
        ("train.optimizer.kind=sgd", "adamw"),
        ("train.optimizer={ kind = 'adamw', momentum = 1 }", "momentum"),
        ("train.optimizer.weight_decay=0", "kind"),
        ("train.schedule={ kind = 'linear' }", "linear"),
        ("train.checkpoint_dtype=f8", "f8"),
        ("model.attention.kind=linear", "linear"),
        ("model.attention.width=3", "width"),
        ("model=3", "model"),
    ] {
        let refusal = refusal(&[given]);
        assert!(refusal.contains(told), "{given}: `{told}` is not in: {refusal}");
    }
}

#[test]
fn a_wrong_key_of_the_file_is_shown_with_its_line() {
    for (place, wrong, told) in [
        ("steps = 10", "steps = 10\nspeed = 3", ["line 18", "speed"]),
        ("hidden_size = 64", "hidden_size = 64\nhiden = 1", ["line 4", "hiden"]),
        ("[data]", "[date]\n[data]", ["line 13", "date"]),
        ("head_dim = 16", "head_dim = 16\nheight = 1", ["model", "height"]),
        ("steps = 10", "steps = \"ten\"", ["line 17", "steps"]),
        ("steps = 10", "steps = ", ["line 17", "steps"]),
        ("steps = 10", "", ["train", "steps"]),
        ("steps = 10", "steps = 10\nsteps = 11", ["line 18", "duplicate"]),
    ] {
        assert!(BASE.contains(place));
        let error = parse(&BASE.replacen(place, wrong, 1), &[]).unwrap_err().to_string();
        for part in told.into_iter().chain(["run.toml"]) {
            assert!(error.contains(part), "{wrong:?}: `{part}` is not in: {error}");
        }
    }
}

#[test]
fn values_outside_their_range_are_named() {
    for (given, key) in [
        ("train.steps=0", "train.steps"),
        ("train.batch_size=0", "train.batch_size"),
        ("train.accumulate=0", "train.accumulate"),
        ("train.log_every=0", "train.log_every"),
        ("train.keep_checkpoints=0", "train.keep_checkpoints"),
        ("data.seq_len=0", "data.seq_len"),
        ("data.seq_len=513", "data.seq_len"),
        ("train.batch_size=9223372036854775807", "train.batch_size"),
        ("train.batch_size=1000000", "train.batch_size"),
        ("train.accumulate=9223372036854775807", "train.accumulate"),
        ("train.accumulate=1000000", "train.accumulate"),
        ("train.eval_tokens=0", "train.eval_tokens"),
        ("train.lr=0", "train.lr"),
        ("train.lr=-1e-3", "train.lr"),
        ("train.lr=nan", "train.lr"),
        ("train.lr=inf", "train.lr"),
        ("train.clip_norm=0", "train.clip_norm"),
        ("train.clip_norm=nan", "train.clip_norm"),
        ("train.optimizer={ kind = 'adamw', betas = [1.0, 0.9] }", "train.optimizer.betas"),
        ("train.optimizer={ kind = 'adamw', betas = [0.9, -0.1] }", "train.optimizer.betas"),
        ("train.optimizer={ kind = 'adamw', betas = [0.9, nan] }", "train.optimizer.betas"),
        ("train.optimizer={ kind = 'adamw', eps = -1e-8 }", "train.optimizer.eps"),
        ("train.optimizer={ kind = 'adamw', weight_decay = inf }", "train.optimizer.weight_decay"),
        ("train.optimizer={ kind = 'muon', momentum = 1 }", "train.optimizer.momentum"),
        ("train.optimizer={ kind = 'muon', lr_ratio = -1 }", "train.optimizer.lr_ratio"),
        ("train.schedule={ kind = 'cosine', warmup = 1, final_ratio = 1.5 }", "train.schedule.final_ratio"),
        (
            "train.schedule={ kind = 'wsd', warmup = 1, decay_fraction = nan, final_ratio = 0 }",
            "train.schedule.decay_fraction",
        ),
    ] {
        let refusal = refusal(&[given]);
        assert!(refusal.starts_with(&format!("`{key}` is ")), "{given}: {refusal}");
        assert!(refusal.contains(": expected "), "{given}: {refusal}");
    }
    let endless = refusal(&["data.source=synthetic:stories:large", "train.eval_tokens=0"]);
    assert!(endless.starts_with("`train.eval_tokens` is "), "{endless}");
    // A text ends, so that all of it can be scored.
    assert_eq!(with(&["data.source=x.txt", "train.eval_tokens=0"]).train.eval_tokens, 0);
    assert_eq!(with(&["train.optimizer={ kind = 'adamw', betas = [0, 0], eps = 0 }"]).train.clip_norm, 1.0);
    assert_eq!(with(&["data.seq_len=512"]).data.seq_len, 512);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.toml");
    let error = RunConfig::load(&missing, &[]).unwrap_err();
    assert!(matches!(&error, RunConfigError::Io { .. }), "{error}");
    assert!(error.to_string().contains("none.toml"), "{error}");
    let binary = folder.path().join("binary.toml");
    std::fs::write(&binary, [0xff, 0xfe, 0x00]).unwrap();
    assert!(RunConfig::load(&binary, &[]).unwrap_err().to_string().contains("binary.toml"));
    let good = folder.path().join("good.toml");
    std::fs::write(&good, BASE).unwrap();
    assert_eq!(RunConfig::load(&good, &["train.steps=3".to_owned()]).unwrap().train.steps, 3);
}

const KEYS: &[&str] = &[
    "model",
    "model.hidden_size",
    "model.vocab_size",
    "model.rms_norm_eps",
    "model.init.std",
    "model.attention",
    "model.attention.kind",
    "model.attention.heads",
    "model.attention.rope_theta",
    "data.source",
    "data.seq_len",
    "data.validation",
    "train",
    "train.seed",
    "train.steps",
    "train.batch_size",
    "train.accumulate",
    "train.lr",
    "train.schedule",
    "train.optimizer",
    "train.optimizer.kind",
    "train.optimizer.betas",
    "train.clip_norm",
    "train.eval_tokens",
    "train.checkpoint_dtype",
    "nothing",
    "",
    ".",
    "a.b.c.d.e",
];

const VALUES: &[&str] = &[
    "",
    "0",
    "-1",
    "-0.0",
    "1e999",
    "nan",
    "-inf",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "99999999999999999999999999",
    "4.9e-324",
    "true",
    "[]",
    "[[[[1]]]]",
    "[0.9, 0.95, 0.99]",
    "{}",
    "{ kind = 'muon' }",
    "{ kind = 1 }",
    "muon",
    "'''",
    "\"\\u0000\"",
    "1979-05-27T07:32:00Z",
    "\u{feff}x",
    "=",
    "x\n[train]\nsteps = 3",
];

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}", given in "\\PC{0,40}") {
        let _ = parse(&text, &[]);
        let _ = parse(BASE, &[&given]);
    }

    #[test]
    fn hostile_values_are_refused_or_written_back(
        pairs in prop::collection::vec((0..KEYS.len(), 0..VALUES.len()), 1..4)
    ) {
        let overrides: Vec<String> = pairs.iter().map(|(k, v)| format!("{}={}", KEYS[*k], VALUES[*v])).collect();
        match RunConfig::parse(BASE, Path::new("run.toml"), &overrides) {
            Err(error) => prop_assert!(!error.to_string().is_empty()),
            Ok(config) => {
                let text = config.to_toml().unwrap();
                let again = parse(&text, &[]).unwrap();
                // The model's own values, NaN among them, are checked later.
                prop_assert_eq!((&again.data, &again.train), (&config.data, &config.train));
                prop_assert_eq!(again.to_toml().unwrap(), text);
            }
        }
    }

    #[test]
    fn numbers_survive_being_written(lr in 1e-300..1e300f64, seed in 0..i64::MAX as u64, ratio in 0.0..=1.0f64) {
        let mut config = with(&[]);
        config.train.lr = lr;
        config.train.seed = seed;
        config.train.schedule = Schedule::Wsd { warmup: seed, decay_fraction: ratio, final_ratio: 1.0 - ratio };
        prop_assert_eq!(parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
    }
}
