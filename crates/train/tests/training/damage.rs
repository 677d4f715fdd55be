//! Damaged checkpoints and diverging runs: errors that name the file or the step, and a good checkpoint left.

use crate::support::{assert_same, config, newest, remains, train, write_text};
use keyfold_tensor::Arena;
use keyfold_train::{
    atomic::Versions,
    checksums::CHECKSUMS_FILE,
    config::RunConfig,
    run::{RunError, prepare},
    trainer::{TrainError, Trainer},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

struct Fixture {
    folder: tempfile::TempDir,
    config: RunConfig,
    out: PathBuf,
}

/// A finished run with checkpoints of steps 2 and 4.
fn fixture(dtype: &str) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    write_text(&text, 0);
    let out = folder.path().join("run");
    let config = config(&[
        &format!("data.source={}", text.display()),
        &format!("train.checkpoint_dtype={dtype}"),
        "train.steps=4",
        "train.save_every=2",
    ]);
    train(&config, &out, false).unwrap();
    Fixture { folder, config, out }
}

impl Fixture {
    /// Opens the checkpoint `dir` as a resumed run does.
    fn open(&self, dir: &Path) -> Result<u64, String> {
        let mut config = self.config.clone();
        let data = prepare(&mut config, &self.out.join("data")).unwrap();
        let opened = Trainer::resume(config, data, dir, &Arena::new());
        opened.map(|(trainer, _)| trainer.steps_done()).map_err(|error| error.to_string())
    }
}

const FILES: [&str; 4] = ["config.json", "model.safetensors", "training.json", "training.safetensors"];

/// Some 40 places of a file of `length` bytes: its begin, its end, and between.
fn places(length: usize) -> Vec<usize> {
    let ends = (0..12).chain(length.saturating_sub(4)..length);
    let mut places: Vec<usize> =
        ends.chain((1..24).map(|i| i * length / 24)).filter(|at| *at < length).collect();
    places.sort_unstable();
    places.dedup();
    places
}

#[test]
fn cut_files_are_refused_by_name() {
    for dtype in ["f32", "bf16"] {
        let fixture = fixture(dtype);
        let dir = newest(&fixture.out);
        assert_eq!(fixture.open(&dir), Ok(4));
        for name in FILES {
            let path = dir.join(name);
            let whole = fs::read(&path).unwrap();
            for length in places(whole.len()) {
                // A text may lose its last line end.
                if whole[length..].iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                fs::write(&path, &whole[..length]).unwrap();
                let error = fixture.open(&dir).expect_err(name);
                assert!(error.contains(name), "{name} of {length} bytes: {error}");
            }
            fs::remove_file(&path).unwrap();
            assert!(fixture.open(&dir).expect_err(name).contains(name));
            fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
            assert!(fixture.open(&dir).expect_err("longer").contains(name), "{name} with a byte more");
            fs::write(&path, &whole).unwrap();
        }
        assert_eq!(fixture.open(&dir), Ok(4));
    }
}

#[test]
fn a_changed_byte_anywhere_is_noticed() {
    let fixture = fixture("bf16");
    let dir = newest(&fixture.out);
    for name in FILES.into_iter().chain(["tokenizer.json"]) {
        let path = dir.join(name);
        let whole = fs::read(&path).unwrap();
        for at in places(whole.len()) {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            fs::write(&path, changed).unwrap();
            let error = fixture.open(&dir).expect_err(name);
            assert!(error.contains(name) && error.contains("damaged"), "{name}, byte {at}: {error}");
        }
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(fixture.open(&dir), Ok(4));
    let list = dir.join(CHECKSUMS_FILE);
    for text in ["", "[]", "{\"config.json\": 1}", "{\"../../text.txt\": {\"bytes\": 1, \"crc32c\": 1}}"] {
        fs::write(&list, text).unwrap();
        let error = fixture.open(&dir).expect_err(text);
        assert!(error.contains(CHECKSUMS_FILE) || error.contains("text.txt"), "{text}: {error}");
    }
}

#[test]
fn changed_bytes_never_end_the_process() {
    let fixture = fixture("bf16");
    let dir = newest(&fixture.out);
    // As in a folder whose list of checksums was lost.
    fs::remove_file(dir.join(CHECKSUMS_FILE)).unwrap();
    for name in FILES {
        let path = dir.join(name);
        let whole = fs::read(&path).unwrap();
        let header = (0..160).map(|i| i * 7 % whole.len().min(1200));
        for at in places(whole.len()).into_iter().chain(header) {
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] ^= flip;
                fs::write(&path, changed).unwrap();
                if let Err(error) = fixture.open(&dir) {
                    // A changed shape or place shows where it no longer fits.
                    let known =
                        FILES.iter().any(|name| error.contains(name)) || error.contains("sampler state");
                    assert!(known, "{name}, byte {at} ^ {flip:#x}: {error}");
                }
            }
        }
        fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn values_of_another_run_are_refused() {
    let fixture = fixture("f32");
    let dir = newest(&fixture.out);
    fs::remove_file(dir.join(CHECKSUMS_FILE)).unwrap();
    let path = dir.join("training.json");
    let whole = fs::read_to_string(&path).unwrap();
    for (from, to, told) in [
        ("\"version\": 1", "\"version\": 2", "`version` is 2: expected 1"),
        ("\"step\": 4", "\"step\": -4", "training.json"),
        ("\"step\": 4", "\"step\": 4, \"extra\": 1", "extra"),
        ("\"seed\": 0", "\"seed\": 3", "seed"),
        ("\"position\": ", "\"position\": 99999999999", "position"),
        ("\"optimizer\": \"adamw\"", "\"optimizer\": \"muon\"", "`optimizer` is `muon`"),
    ] {
        assert!(whole.contains(from), "{from} is not in {whole}");
        fs::write(&path, whole.replacen(from, to, 1)).unwrap();
        let error = fixture.open(&dir).expect_err(to);
        assert!(error.contains(told), "{to}: {error}");
    }
    fs::write(&path, &whole).unwrap();

    // The moments of a model of another size.
    let moments = dir.join("training.safetensors");
    let own = fs::read(&moments).unwrap();
    let value = [0u8; 8];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &value).unwrap();
    let wrong = safetensors::serialize([("matrices.first", view)], None).unwrap();
    fs::write(&moments, wrong).unwrap();
    let error = fixture.open(&dir).unwrap_err();
    assert!(error.contains("training.safetensors: tensor `matrices.first` is [2]"), "{error}");
    fs::write(&moments, own).unwrap();
    assert_eq!(fixture.open(&dir), Ok(4));
}

#[test]
fn the_checkpoint_before_a_damaged_one_still_serves() {
    let fixture = fixture("f32");
    let (out, root) = (&fixture.out, fixture.out.join("checkpoints"));
    let want = remains(out);
    fs::write(newest(out).join("model.safetensors"), b"damaged").unwrap();
    let error = train(&fixture.config, out, true).unwrap_err().to_string();
    assert!(error.contains("step-00000004") && error.contains("model.safetensors"), "{error}");
    // By the pointer, as the layout says: a line with the version's name.
    fs::write(root.join("latest"), "step-00000002\n").unwrap();
    assert_eq!(Versions::latest(&root).unwrap(), Some(root.join("step-00000002")));
    train(&fixture.config, out, true).unwrap();
    assert_same(&remains(out), &want, "from the checkpoint before");
}

#[test]
fn a_damaged_pointer_is_refused() {
    let fixture = fixture("f32");
    let pointer = fixture.out.join("checkpoints/latest");
    let whole = fs::read(&pointer).unwrap();
    for text in [&b""[..], b"step-", b"step-00000009\n", b"../../..", b"\xff\xfe", &[b'9'; 4096]] {
        fs::write(&pointer, text).unwrap();
        let error = train(&fixture.config, &fixture.out, true).unwrap_err().to_string();
        assert!(error.contains("checkpoints"), "{text:?}: {error}");
    }
    fs::write(&pointer, whole).unwrap();
    train(&fixture.config, &fixture.out, true).unwrap();
}

#[test]
fn damaged_metrics_are_refused_and_a_torn_end_is_repaired() {
    let fixture = fixture("f32");
    let path = fixture.out.join("metrics.jsonl");
    let (whole, want) = (fs::read(&path).unwrap(), remains(&fixture.out));
    fs::write(&path, [b"nonsense\n", &whole[..]].concat()).unwrap();
    let error = train(&fixture.config, &fixture.out, true).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl, line 1"), "{error}");
    fs::remove_file(&path).unwrap();
    let error = train(&fixture.config, &fixture.out, true).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl"), "{error}");
    fs::write(&path, [&whole[..], b"{\"step\": 5, \"tok"].concat()).unwrap();
    train(&fixture.config, &fixture.out, true).unwrap();
    assert_same(&remains(&fixture.out), &want, "a torn line");
}

#[test]
fn a_diverging_run_stops_at_its_step_with_its_last_checkpoint() {
    let fixture = fixture("f32");
    for lr in [1e30, 1e38] {
        diverge(&fixture, lr);
    }
}

fn diverge(fixture: &Fixture, lr: f64) {
    let out = fixture.folder.path().join(format!("diverging-{lr:e}"));
    let mut config = fixture.config.clone();
    config.train.lr = lr;
    config.train.save_every = 1;
    let error = train(&config, &out, false).unwrap_err();
    let RunError::Train(TrainError::NotFinite { step, what, value, culprit }) = &error else {
        panic!("{error}")
    };
    assert!(*step > 1 && !value.is_finite(), "{error}");
    assert!(error.to_string().contains(&format!("step {step}: the {what} is ")), "{error}");
    let culprit = culprit.unwrap();
    assert!(error.to_string().contains(&format!("first in {culprit}; ")), "{error}");
    assert!(error.to_string().contains(&format!("the weights are those of step {}", step - 1)), "{error}");
    assert!(newest(&out).ends_with(format!("step-{:08}", step - 1)), "{}", newest(&out).display());
    // Going on fails in the same way and changes nothing.
    let before = remains(&out);
    let again = train(&config, &out, true).unwrap_err().to_string();
    assert_eq!(again, error.to_string());
    assert_same(&remains(&out), &before, "a diverged run");
}

#[test]
fn a_run_that_has_diverged_before_its_first_checkpoint_has_none() {
    let fixture = fixture("f32");
    let out = fixture.folder.path().join("diverging");
    let mut config = fixture.config.clone();
    config.train.lr = 1e38;
    config.train.save_every = 0;
    assert!(matches!(train(&config, &out, false), Err(RunError::Train(TrainError::NotFinite { .. }))));
    assert!(matches!(train(&config, &out, true), Err(RunError::NoCheckpoint(_))));
}
