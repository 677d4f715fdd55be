use std::path::{Path, PathBuf};

use super::*;
use crate::{DataError, TokenizerSpec};

fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: no {name} beside the repository");
    None
}

fn spec(text: &str) -> DataSpec {
    text.parse().unwrap()
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn specs_parse_and_print() {
    for text in ["synthetic:stories", "synthetic:stories:large"] {
        assert!(spec(text).source.stories().is_some());
        assert_eq!(spec(text).to_string(), text);
    }
    assert_eq!(spec("some/file.txt").to_string(), "some/file.txt");
    for wrong in ["", "synthetic:", "synthetic:storys", "synthetic:stories:huge"] {
        assert!(matches!(wrong.parse::<DataSpec>(), Err(DataError::Spec { .. })));
    }
    let full: DataSpec = serde_json::from_str(r#"{"source":"a.txt","val":"b.txt"}"#).unwrap();
    assert_eq!(full.val, Some("b.txt".into()));
    assert!(serde_json::from_str::<DataSpec>(r#"{"source":"a.txt","vall":"b.txt"}"#).is_err());
}

#[test]
fn text_is_prepared_once_and_repaired() {
    let Some(path) = shared("tinyshakespeare.txt") else { return };
    let folder = tempfile::tempdir().unwrap();
    let options = Prepare::new(128, 1, folder.path());
    let prepare =
        || Dataset::prepare(&spec(path.to_str().unwrap()), &TokenizerSpec::Bpe(512), &options).unwrap();
    let mut first = prepare();
    let d = first.describe().clone();
    let (train, validation) = (d.train.unwrap(), d.validation.unwrap());
    assert_eq!(train.bytes + validation.bytes, 1_115_394);
    assert!((100_000..125_000).contains(&validation.bytes), "{d}");
    assert_eq!((d.vocab_size, d.tokenizer.as_str()), (512, "bpe:512"));

    let cached = files_in(folder.path());
    assert_eq!(cached.len(), 3, "{cached:?}");
    let batch = first.next_batch(4).unwrap();
    assert_eq!(prepare().next_batch(4).unwrap(), batch);
    for file in cached.iter().filter(|f| f.extension().is_some_and(|e| e == "bin")) {
        std::fs::write(file, b"KFTOKENS garbage").unwrap();
    }
    let tokenizer = cached.iter().find(|f| f.is_dir()).unwrap();
    std::fs::write(tokenizer.join("tokenizer.json"), "{").unwrap();
    assert_eq!(prepare().next_batch(4).unwrap(), batch);
    assert_eq!(files_in(folder.path()), cached);
}

#[test]
fn validation_covers_the_split_exactly_once() {
    let Some(path) = shared("tinyshakespeare.txt") else { return };
    let folder = tempfile::tempdir().unwrap();
    let options = Prepare::new(100, 1, folder.path());
    let data = Dataset::prepare(&spec(path.to_str().unwrap()), &TokenizerSpec::Bytes, &options).unwrap();
    let amount = data.describe().validation.unwrap();
    let batches: Vec<Batch> = data.validation(7, u64::MAX).map(|b| b.unwrap()).collect();
    let counted: usize = batches.iter().map(Batch::counted_targets).sum();
    assert_eq!(counted as u64, amount.tokens - 1);
    // Every byte but the very first, which is no target.
    assert_eq!(batches.iter().map(|b| b.target_bytes).sum::<u64>(), amount.bytes - 1);
    assert!(batches[..batches.len() - 1].iter().all(|b| b.loss_mask.is_none()));
    let some: Vec<Batch> = data.validation(7, 1000).map(|b| b.unwrap()).collect();
    assert_eq!(some.iter().map(|b| b.batch).collect::<Vec<_>>(), [7, 3]);
    assert_eq!(data.validation(7, 0).map(|b| b.unwrap().batch).sum::<usize>(), 1);
}

#[test]
fn validation_data_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let [train, val] = ["train.txt", "val.txt"].map(|n| folder.path().join(n));
    std::fs::write(&train, "all of this is for training. ".repeat(20)).unwrap();
    std::fs::write(&val, "and this is not").unwrap();
    let options = Prepare::new(16, 1, folder.path().join("cache"));
    let mut both = DataSpec { source: SourceSpec::Path(train.clone()), val: Some(val) };
    let data = Dataset::prepare(&both, &TokenizerSpec::Bytes, &options).unwrap();
    assert_eq!(data.describe().train.unwrap().bytes, 580);
    assert_eq!(data.describe().validation.unwrap().bytes, 15);
    let batch = data.validation(1, 100).next().unwrap().unwrap();
    assert_eq!((batch.counted_targets(), batch.target_bytes), (15, 14));
    both.val = Some(train);
    assert!(matches!(Dataset::prepare(&both, &TokenizerSpec::Bytes, &options), Err(DataError::Spec { .. })));
}

#[test]
fn hostile_settings_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.txt");
    std::fs::write(&file, "a few words only").unwrap();
    let name = file.to_str().unwrap().to_string();
    let try_with = |source: &str, seq_len: usize| {
        let options = Prepare::new(seq_len, 1, folder.path().join("cache"));
        Dataset::prepare(&spec(source), &TokenizerSpec::Bytes, &options).unwrap_err().to_string()
    };
    assert!(try_with(&name, 100).contains("seq_len 100"));
    assert!(try_with(&name, 0).contains("seq_len"));
    assert!(try_with("synthetic:stories", usize::MAX).contains("seq_len"));
    assert!(try_with("/nowhere/at/all", 8).contains("/nowhere/at/all"));
    assert!(try_with("tinystories", 8).contains("fetch"));
    let options = Prepare::new(8, 1, &file);
    let error = Dataset::prepare(&spec(&name), &TokenizerSpec::Bytes, &options).unwrap_err();
    assert!(matches!(error, DataError::Io { .. }), "{error}");
    let bad = TokenizerSpec::File("/nowhere/tokenizer.json".into());
    assert!(Dataset::prepare(&spec(&name), &bad, &Prepare::new(8, 1, folder.path())).is_err());
}

#[test]
fn stories_resume_and_have_answers() {
    let folder = tempfile::tempdir().unwrap();
    let options = Prepare::new(256, 5, folder.path());
    let prepare =
        || Dataset::prepare(&spec("synthetic:stories"), &TokenizerSpec::Bpe(1024), &options).unwrap();
    let mut a = prepare();
    for _ in 0..3 {
        a.next_batch(4).unwrap();
    }
    let mut b = prepare();
    let state: SamplerState = serde_json::from_str(&serde_json::to_string(&a.state()).unwrap()).unwrap();
    b.restore(&state).unwrap();
    let batch = a.next_batch(4).unwrap();
    assert_eq!(b.next_batch(4).unwrap(), batch);
    assert!(batch.answers.len() >= 20, "{}", batch.answers.len());
    assert_eq!(batch.answered(&batch.targets), vec![true; batch.answers.len()]);
    let wrong: Vec<u32> = batch.targets.iter().map(|t| t + 1).collect();
    assert_eq!(batch.answered(&wrong), vec![false; batch.answers.len()]);
    assert_eq!(batch.answered(&[]), vec![false; batch.answers.len()]);
    let validation: Vec<Batch> = a.validation(8, 8192).map(|b| b.unwrap()).collect();
    assert_eq!(validation.iter().map(|b| b.batch).sum::<usize>(), 32);
    assert_eq!(validation, b.validation(8, 8192).map(|b| b.unwrap()).collect::<Vec<_>>());
    assert!(a.describe().bytes_per_token > 2.0, "{}", a.describe());
    println!("{}", a.describe());
}

#[test]
fn large_text_keeps_documents_apart() {
    let Some(path) = shared("books-val.txt") else { return };
    let folder = tempfile::tempdir().unwrap();
    let options = Prepare::new(512, 1, folder.path());
    let data = Dataset::prepare(&spec(path.to_str().unwrap()), &TokenizerSpec::Bytes, &options).unwrap();
    assert!(data.describe().train.unwrap().documents >= 6, "{}", data.describe());
}
