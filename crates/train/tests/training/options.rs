//! Options that may change memory and time but not what is learned, and options that must change it.

use crate::support::{config, losses, newest, train, write_text};
use keyfold_core::DType;
use keyfold_model::{LanguageModel, Sequences, checkpoint};
use keyfold_tensor::Arena;
use keyfold_train::{config::RunConfig, run::prepare, trainer::Trainer};

fn furthest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn activation_checkpointing_and_bf16_activations_learn_the_same() {
    for kind in ["kind = 'mha', heads = 2, head_dim = 16", "kind = 'mfa', heads = 4, head_dim = 16"] {
        let attention = format!("model.attention={{ {kind} }}");
        let with =
            |options: &[&str]| losses(&config(&[&[attention.as_str(), "train.steps=12"], options].concat()));
        let plain = with(&[]);
        let again = with(&["train.activation_checkpointing=true"]);
        assert!(furthest(&plain, &again) < 1e-6, "{kind}: checkpointed layers differ: {plain:?} {again:?}");
        let halves = with(&["train.activation_dtype=bf16"]);
        assert!(halves != plain, "{kind}: bf16 changes nothing");
        assert!(furthest(&plain, &halves) < 2e-2, "{kind}: bf16 activations differ: {plain:?} {halves:?}");
        let both = with(&["train.activation_dtype=bf16", "train.activation_checkpointing=true"]);
        assert!(furthest(&plain, &both) < 2e-2, "{kind}: both differ: {plain:?} {both:?}");
        assert!(plain[11] < plain[0] - 0.2, "{kind}: nothing is learned: {plain:?}");
    }
}

#[test]
fn accumulated_batches_are_one_batch() {
    let whole = losses(&config(&["train.batch_size=8"]));
    for (rows, times) in [(4, 2), (1, 8)] {
        let parts =
            losses(&config(&[&format!("train.batch_size={rows}"), &format!("train.accumulate={times}")]));
        assert!(furthest(&whole, &parts) < 1e-5, "{times} x {rows}: {whole:?} {parts:?}");
    }
}

#[test]
fn the_seed_decides_weights_and_data() {
    let first = losses(&config(&["train.seed=1"]));
    assert_eq!(first, losses(&config(&["train.seed=1"])));
    assert_ne!(first, losses(&config(&["train.seed=2"])));
}

#[test]
fn tied_embeddings_are_stored_once_and_learn() {
    let folder = tempfile::tempdir().unwrap();
    let parameters = |tied: bool| {
        let mut config = config(&["train.steps=12", &format!("model.tie_word_embeddings={tied}")]);
        let out = folder.path().join(tied.to_string());
        train(&config, &out, false).unwrap();
        let dir = newest(&out);
        let stored = checkpoint::read_config(&dir).unwrap();
        assert_eq!(stored.tie_word_embeddings, tied);
        let weights = checkpoint::read_weights(&dir, &stored, DType::F32, false, &Arena::new()).unwrap();
        assert_eq!(weights.get("lm_head.weight").is_ok(), !tied);

        // What is read scores as what was trained.
        let data = prepare(&mut config, &out.join("data")).unwrap();
        let (trainer, _) = Trainer::resume(config, data, &dir, &Arena::new()).unwrap();
        let count = weights.count();
        let model = LanguageModel::with_weights(&stored, weights, &Arena::new()).unwrap();
        let (ids, sequences) = ([84, 104, 101, 32], Sequences::new(1, 4));
        let logits = |model: &LanguageModel| model.logits(&ids, &sequences).to_vec();
        assert_eq!(logits(&model), logits(trainer.model()));
        count
    };
    assert_eq!(parameters(false) - parameters(true), 257 * 32);
    let curve = losses(&config(&["train.steps=12", "model.tie_word_embeddings=true"]));
    assert!(curve[11] < curve[0] - 0.2, "{curve:?}");
}

/// Rows that hold the ends of documents: with the mask, what follows an end is scored without what came before it.
#[test]
fn masked_documents_do_not_see_their_neighbours() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    write_text(&text, 0);
    let with = |masked: bool| {
        let source = format!("data.source={}", text.display());
        config(&[&source, "data.seq_len=256", "model.max_position_embeddings=256", "train.batch_size=2"])
            .with_mask(masked)
    };
    let (plain, masked) = (losses(&with(false)), losses(&with(true)));
    assert!(plain[0] != masked[0], "the mask changes nothing");
    assert!(furthest(&plain, &masked) < 0.2, "{plain:?} {masked:?}");
    assert!(masked[5] < masked[0], "{masked:?}");

    let mut config = with(true);
    let data = prepare(&mut config, &folder.path().join("data")).unwrap();
    let trainer = Trainer::new(config, data, &Arena::new()).unwrap();
    let evaluation = trainer.evaluate().unwrap();
    assert!(evaluation.loss.is_finite() && evaluation.bits_per_byte > evaluation.loss, "{evaluation:?}");
    assert_eq!(evaluation.recall_accuracy, None);
}

trait Masked {
    fn with_mask(self, masked: bool) -> Self;
}

impl Masked for RunConfig {
    fn with_mask(mut self, masked: bool) -> Self {
        self.data.mask_documents = masked;
        self
    }
}

#[test]
fn stories_are_scored_by_their_answers_too() {
    let mut config =
        config(&["train.eval_tokens=8192", "data.seq_len=1024", "model.max_position_embeddings=1024"]);
    let folder = tempfile::tempdir().unwrap();
    let data = prepare(&mut config, &folder.path().join("data")).unwrap();
    let trainer = Trainer::new(config, data, &Arena::new()).unwrap();
    let evaluation = trainer.evaluate().unwrap();
    assert_eq!(evaluation.tokens, 8192);
    // Nothing is learned yet: near uniform, and hardly an answer right.
    assert!((evaluation.loss - 257f64.ln()).abs() < 0.2, "{evaluation:?}");
    assert!(evaluation.recall_accuracy.is_some_and(|right| right < 0.2), "{evaluation:?}");
}

/// All of a text is scored once, the padding of the last row not.
#[test]
fn without_a_limit_all_of_the_validation_text_is_scored() {
    let folder = tempfile::tempdir().unwrap();
    let (text, other) = (folder.path().join("text.txt"), folder.path().join("other.txt"));
    write_text(&text, 0);
    write_text(&other, 1);
    let source = [format!("data.source={}", text.display()), format!("data.validation={}", other.display())];
    let scored = |rows: usize| {
        let rows = format!("train.batch_size={rows}");
        let mut config = config(&[&source[0], &source[1], "train.eval_tokens=0", &rows]);
        let data = prepare(&mut config, &folder.path().join("data")).unwrap();
        let tokens = data.describe().validation.unwrap().tokens;
        let evaluation = Trainer::new(config, data, &Arena::new()).unwrap().evaluate().unwrap();
        assert_eq!(evaluation.tokens, tokens - 1);
        evaluation.loss
    };
    let (few, many) = (scored(3), scored(16));
    assert!((few - many).abs() < 1e-5, "{few} {many}");
}

#[test]
fn a_repetitive_text_is_learned() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "the cat sat on the mat and the dog sat on the log. ".repeat(200)).unwrap();
    for optimizer in ["adamw", "muon"] {
        let curve = losses(&config(&[
            &format!("data.source={}", text.display()),
            &format!("train.optimizer.kind={optimizer}"),
            "train.steps=60",
            "train.eval_every=0",
            "train.lr=5e-3",
        ]));
        assert!((curve[0] - 257f64.ln()).abs() < 0.2, "{optimizer}: {curve:?}");
        assert!(curve[59] < 2.0, "{optimizer}: {curve:?}");
    }
}

#[test]
fn a_model_that_does_not_fit_into_memory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    write_text(&text, 0);
    let source = format!("data.source={}", text.display());
    let config = config(&[&source, "model.hidden_size=32768", "model.num_hidden_layers=400"]);
    let error = train(&config, &folder.path().join("run"), false).unwrap_err().to_string();
    assert!(error.contains("parameters takes") && error.contains("are free"), "{error}");
}
