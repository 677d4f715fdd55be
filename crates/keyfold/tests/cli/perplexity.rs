//! `perplexity`: numbers that fit together, and inputs that cannot be scored.

use crate::support::{keys, refused, succeed, trained};
use serde_json::Value;
use std::{collections::BTreeSet, fs};

fn report(options: &[&str]) -> Value {
    let data = trained().parent().unwrap().join("text.txt");
    let (model, data) = (trained().to_str().unwrap(), data.to_str().unwrap());
    let told = succeed(trained(), &[&["perplexity", model, "--data", data, "--json"][..], options].concat());
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"))
}

#[test]
fn the_numbers_fit_together() {
    let half = report(&[]);
    let documented = [
        "perplexity",
        "bits_per_byte",
        "nats",
        "tokens",
        "bytes",
        "chunks",
        "context",
        "stride",
        "prefix_tokens",
        "text_tokens",
        "dtype",
        "seconds",
    ];
    assert_eq!(keys(&half), BTreeSet::from(documented));
    let number =
        |report: &Value, key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key}: {report}"));
    let [text, chunks] = ["text_tokens", "chunks"].map(|key| number(&half, key));
    // The model's longest sequence is 48; of each window of bytes the second half counts.
    assert_eq!((number(&half, "context"), chunks), (48.0, (text / 48.0).floor()));
    assert_eq!((number(&half, "tokens"), number(&half, "bytes")), (24.0 * chunks, 24.0 * chunks));
    let mean = number(&half, "nats") / number(&half, "tokens");
    assert!((number(&half, "perplexity") - mean.exp()).abs() < 1e-9 * mean.exp());
    assert!((number(&half, "bits_per_byte") - mean / 2f64.ln()).abs() < 1e-9);
    // It has been trained on this text: far below the 257 of guessing.
    assert!((2.0..120.0).contains(&number(&half, "perplexity")), "{half}");

    let strided = report(&["--context", "32", "--stride", "16"]);
    assert_eq!(number(&strided, "tokens"), text - 1.0);
    let few = report(&["--limit-chars", "100", "--context", "20"]);
    assert_eq!((number(&few, "text_tokens"), number(&few, "chunks")), (100.0, 5.0));
    let one = report(&["--chunks", "1", "--context", "20", "--threads", "1", "--dtype", "bf16"]);
    assert_eq!((number(&one, "tokens"), one["dtype"].as_str()), (10.0, Some("bf16")));
}

#[test]
fn texts_and_windows_that_cannot_be_scored_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.txt");
    fs::write(&data, "a short text").unwrap();
    let (model, data) = (trained().to_str().unwrap(), data.to_str().unwrap());
    for (options, told) in [
        (&[][..], "data.txt: a text of 12 tokens: expected at least 48"),
        (&["--context", "49"], "--context is 49: expected at most the model's longest sequence, 48"),
        (&["--context", "1"], "a context of 1"),
        (&["--context", "8", "--stride", "0"], "a stride of 0"),
        (&["--context", "8", "--stride", "8"], "a stride of 8: expected 1 to 7"),
        (&["--context", "8", "--chunks", "0"], "--chunks is 0"),
        (&["--limit-chars", "0"], "a text of 0 tokens"),
    ] {
        let args = [&["perplexity", model, "--data", data][..], options].concat();
        let error = refused(folder.path(), &args);
        assert!(error.contains(told), "{options:?}: {error}");
    }
    let error = refused(folder.path(), &["perplexity", model, "--data", "none.txt"]);
    assert!(error.contains("none.txt"), "{error}");
    fs::write(folder.path().join("binary"), [0xff, 0xfe]).unwrap();
    let error = refused(folder.path(), &["perplexity", model, "--data", "binary"]);
    assert!(error.contains("binary"), "{error}");
}
