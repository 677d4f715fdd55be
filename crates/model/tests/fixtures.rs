//! Every attention design and option against an independent PyTorch implementation (`fixtures/`): logits, loss, all
//! gradients, and decoding from the cache one token at a time and in chunks.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use keyfold_core::DType;
use keyfold_model::{Chunk, Decoder, LanguageModel, ModelConfig, Sequences, TapeOptions, weights::Weights};
use keyfold_tensor::Arena;
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Largest error relative to the largest magnitude.
const TOLERANCE: f64 = 1e-4;

struct Case {
    name: String,
    config: ModelConfig,
    bytes: Vec<u8>,
    batch: usize,
    seq: usize,
}

impl Case {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let mut config: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["config"]).unwrap();
        // The reference uses one epsilon for all norms.
        if config["attention"]["kind"] == "mla" {
            config["attention"]["latent_norm_eps"] = config["rms_norm_eps"].clone();
        }
        let config: ModelConfig = serde_json::from_value(config).unwrap();
        config.validate().unwrap();
        let shape = SafeTensors::deserialize(&bytes).unwrap().tensor("input_ids").unwrap().shape().to_vec();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        Self { name, config, bytes, batch: shape[0], seq: shape[1] }
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        floats(&self.file().tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", self.name)))
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let file = self.file();
        let data = file.tensor(name).unwrap().data();
        data.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn sequences(&self) -> Sequences {
        let packed = self.file().tensor("doc_starts").is_ok();
        let doc_starts = packed.then(|| self.ids("doc_starts").into());
        Sequences { doc_starts, ..Sequences::new(self.batch, self.seq) }
    }

    fn model(&self, arena: &Arena) -> LanguageModel {
        let weights = Weights::allocate(arena, self.config.declare().unwrap(), DType::F32, true);
        let stored = self.file().names().iter().filter(|name| name.starts_with("weight.")).count();
        assert_eq!(weights.declared().len(), stored, "{}: number of weights", self.name);
        for (declared, mut param) in weights.iter() {
            param.value.write(&self.floats(&format!("weight.{}", declared.name)));
        }
        LanguageModel::with_weights(&self.config, weights, arena).unwrap()
    }

    fn check_gradients(&self, model: &LanguageModel, tolerance: f64) {
        let (ids, targets) = (self.ids("input_ids"), self.ids("targets"));
        let scale = 1.0 / ids.len() as f32;
        let loss = model.forward_backward(&ids, &targets, &self.sequences(), scale).read();
        self.close("loss", &[loss.mean() as f32], &self.floats("loss"), tolerance);
        for (declared, param) in model.weights().iter() {
            let want = self.floats(&format!("grad.{}", declared.name));
            self.close(&declared.name, &param.grad.unwrap().to_vec(), &want, tolerance);
        }
    }

    fn close(&self, what: &str, got: &[f32], want: &[f32], tolerance: f64) {
        assert_eq!(got.len(), want.len(), "{}: {what}: number of values", self.name);
        let scale = want.iter().fold(1e-5f64, |max, x| max.max(f64::from(x.abs())));
        let error = got.iter().zip(want).fold(0f64, |max, (g, w)| {
            let error = (f64::from(*g) - f64::from(*w)).abs();
            if error.is_nan() { f64::INFINITY } else { max.max(error) }
        });
        assert!(error <= tolerance * scale, "{}: {what}: error {:.2e}", self.name, error / scale);
    }
}

fn floats(view: &TensorView<'_>) -> Vec<f32> {
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/cases");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 40, "only {} fixtures", paths.len());
    paths.iter().map(|path| Case::read(path)).collect()
}

#[test]
fn every_design_has_fixtures() {
    let cases = cases();
    for (kind, _) in keyfold_model::attention::DESIGNS {
        assert!(cases.iter().any(|case| case.config.attention.kind() == *kind), "no fixture for {kind}");
    }
}

#[test]
fn logits_equal_pytorch() {
    for case in cases() {
        let model = case.model(&Arena::poisoned());
        let logits = model.logits(&case.ids("input_ids"), &case.sequences());
        case.close("logits", &logits.to_vec(), &case.floats("logits"), TOLERANCE);
    }
}

#[test]
fn gradients_equal_pytorch() {
    for case in cases() {
        case.check_gradients(&case.model(&Arena::poisoned()), TOLERANCE);
    }
}

#[test]
fn gradients_equal_pytorch_when_layers_are_checkpointed() {
    for case in cases() {
        let options = TapeOptions { checkpoint_layers: true, ..TapeOptions::default() };
        case.check_gradients(&case.model(&Arena::poisoned()).with_tape_options(options), TOLERANCE);
    }
}

#[test]
fn gradients_are_near_pytorch_when_activations_are_kept_as_bf16() {
    for case in cases() {
        for checkpoint_layers in [false, true] {
            let options = TapeOptions { saved_dtype: DType::Bf16, checkpoint_layers };
            case.check_gradients(&case.model(&Arena::poisoned()).with_tape_options(options), 5e-2);
        }
    }
}

#[test]
fn decoding_from_the_cache_equals_pytorch() {
    for case in cases().into_iter().filter(|case| case.file().tensor("doc_starts").is_err()) {
        let arena = Arena::poisoned();
        let model = case.model(&arena);
        let decoder = Decoder::new(&case.config, model.weights()).unwrap();
        let (ids, want) = (case.ids("input_ids"), case.floats("logits"));
        let width = case.seq * case.config.vocab_size;
        for (row, want) in want.chunks_exact(width).enumerate() {
            let ids = &ids[row * case.seq..(row + 1) * case.seq];
            for chunk in [1, 3, case.seq] {
                let mut cache = decoder.cache(case.seq, DType::F32).unwrap();
                let logits: Vec<f32> =
                    ids.chunks(chunk).flat_map(|ids| decoder.logits(ids, &mut cache).to_vec()).collect();
                case.close(&format!("logits in chunks of {chunk}"), &logits, want, TOLERANCE);
            }
        }
    }
}

/// Sequences that advance by turns in one batch, some by a prompt's chunk and some by a token, over interleaved pages.
#[test]
fn paged_batches_equal_pytorch() {
    for case in cases().into_iter().filter(|case| case.file().tensor("doc_starts").is_err()) {
        let model = case.model(&Arena::new());
        let decoder = Decoder::new(&case.config, model.weights()).unwrap();
        let (ids, want) = (case.ids("input_ids"), case.floats("logits"));
        let (vocab, batch) = (case.config.vocab_size, ids.len() / case.seq);
        for page_size in [3, 64] {
            let pages_each = case.seq.div_ceil(page_size);
            let mut cache = decoder.paged_cache(batch * pages_each, page_size, DType::F32).unwrap();
            let table = |row: usize| -> Vec<u32> {
                (0..pages_each).map(|page| ((pages_each - 1 - page) * batch + row) as u32).collect()
            };
            let tables: Vec<_> = (0..batch).map(table).collect();
            let mut past = vec![0; batch];
            let mut got = vec![Vec::new(); batch];
            for step in 0.. {
                let new: Vec<usize> =
                    (0..batch).map(|row| (1 + (step + row) % 3 * 2).min(case.seq - past[row])).collect();
                let chunks: Vec<Chunk<'_>> = (0..batch)
                    .filter(|row| past[*row] < case.seq)
                    .map(|row| Chunk {
                        tokens: &ids[row * case.seq + past[row]..][..new[row]],
                        past: past[row],
                        pages: &tables[row],
                        logits: new[row],
                    })
                    .collect();
                if chunks.is_empty() {
                    break;
                }
                let logits = decoder.forward(&chunks, &mut cache).to_vec();
                let mut rows = logits.chunks_exact(vocab);
                for row in 0..batch {
                    got[row].extend(rows.by_ref().take(new[row]).flatten());
                    past[row] += new[row];
                }
            }
            for (row, got) in got.iter().enumerate() {
                let want = &want[row * case.seq * vocab..][..case.seq * vocab];
                case.close(&format!("logits of row {row}, pages of {page_size}"), got, want, TOLERANCE);
            }
        }
    }
}

#[test]
fn a_bf16_cache_decodes_nearly_the_same() {
    for case in cases().into_iter().filter(|case| case.file().tensor("doc_starts").is_err()) {
        let model = case.model(&Arena::new());
        let decoder = Decoder::new(&case.config, model.weights()).unwrap();
        let ids = &case.ids("input_ids")[..case.seq];
        let mut cache = decoder.cache(case.seq, DType::Bf16).unwrap();
        let logits: Vec<f32> =
            ids.iter().flat_map(|id| decoder.logits(&[*id], &mut cache).to_vec()).collect();
        case.close("logits", &logits, &case.floats("logits")[..logits.len()], 3e-2);
    }
}

#[test]
fn the_cache_holds_what_the_layout_says() {
    for case in cases() {
        let decoder = Decoder::new(&case.config, case.model(&Arena::new()).weights()).unwrap();
        let cache = decoder.cache(8, DType::Bf16).unwrap();
        assert_eq!(
            cache.bytes_per_token(),
            case.config.kv_bytes_per_token(DType::Bf16).unwrap(),
            "{}",
            case.name
        );
        assert_eq!(cache.bytes(), 8 * cache.bytes_per_token());
    }
}
