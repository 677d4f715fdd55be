use super::*;
use proptest::prelude::*;
use std::fs;

fn record(step: u64) -> Record {
    Record {
        step,
        tokens: step * 1024,
        loss: 3.5,
        lr: 1e-3,
        grad_norm: 0.5,
        tokens_per_s: 1000.0,
        elapsed_s: step as f64,
        val_loss: (step.is_multiple_of(2)).then_some(3.25),
        val_bits_per_byte: None,
        recall_accuracy: None,
    }
}

struct Fixture {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

/// A file with records of the steps 1 to `steps`.
fn fixture(steps: u64) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut writer = MetricsWriter::create(&path).unwrap();
    (1..=steps).for_each(|step| writer.write(&record(step)).unwrap());
    writer.sync().unwrap();
    Fixture { _folder: folder, path }
}

#[test]
fn the_format_is_one_flat_object_a_line() {
    let file = fixture(2);
    assert_eq!(
        fs::read_to_string(&file.path).unwrap(),
        concat!(
            r#"{"step":1,"tokens":1024,"loss":3.5,"lr":0.001,"grad_norm":0.5,"tokens_per_s":1000.0,"elapsed_s":1.0}"#,
            "\n",
            r#"{"step":2,"tokens":2048,"loss":3.5,"lr":0.001,"grad_norm":0.5,"tokens_per_s":1000.0,"elapsed_s":2.0,"#,
            r#""val_loss":3.25}"#,
            "\n",
        )
    );
    assert_eq!(read(&file.path).unwrap(), [record(1), record(2)]);
}

#[test]
fn a_diverged_loss_is_kept_as_not_a_number() {
    let file = fixture(0);
    let mut writer = MetricsWriter::create(&file.path).unwrap();
    writer.write(&Record { loss: f64::INFINITY, grad_norm: f64::NAN, ..record(1) }).unwrap();
    let read = read(&file.path).unwrap();
    assert!(read[0].loss.is_nan() && read[0].grad_norm.is_nan());
}

#[test]
fn resuming_cuts_later_steps_and_a_torn_line() {
    let file = fixture(5);
    let mut text = fs::read(&file.path).unwrap();
    text.extend(br#"{"step":6,"tok"#);
    fs::write(&file.path, text).unwrap();
    let error = read(&file.path).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl, line 6: the line has no end"), "{error}");

    MetricsWriter::resume(&file.path, 5).unwrap();
    assert_eq!(read(&file.path).unwrap().len(), 5);

    let mut writer = MetricsWriter::resume(&file.path, 3).unwrap();
    writer.write(&record(4)).unwrap();
    let steps: Vec<_> = read(&file.path).unwrap().iter().map(|record| record.step).collect();
    assert_eq!(steps, [1, 2, 3, 4]);

    MetricsWriter::resume(&file.path, 0).unwrap();
    assert_eq!(fs::read(&file.path).unwrap(), b"");
}

#[test]
fn wrong_lines_are_named_and_the_file_is_left_alone() {
    let good = serde_json::to_string(&record(1)).unwrap();
    let cases = [
        (format!("{good}\nnonsense\n"), "line 2: expected ident"),
        (format!("{good}\n\n"), "line 2: EOF"),
        (format!("{good}\n{{\"step\":2}}\n"), "line 2: missing field `tokens`"),
        (good.replace("\"lr\"", "\"rate\"") + "\n", "line 1: unknown field `rate`"),
        (good.replace(":1,", ":-1,") + "\n", "line 1: invalid value"),
        (format!("{good}\n{good}\n"), "line 2: step 1 comes after step 1"),
        (format!("\u{feff}{good}\n"), "line 1: expected value"),
        ("\0\0\0\n".to_owned(), "line 1: expected value"),
    ];
    let file = fixture(0);
    for (text, wanted) in cases {
        fs::write(&file.path, &text).unwrap();
        for error in [read(&file.path).unwrap_err(), MetricsWriter::resume(&file.path, 9).unwrap_err()] {
            assert!(error.to_string().contains(wanted), "{error}");
        }
        assert_eq!(fs::read_to_string(&file.path).unwrap(), text);
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = MetricsWriter::resume("missing/metrics.jsonl", 1).unwrap_err().to_string();
    assert!(error.starts_with("cannot use missing/metrics.jsonl: "), "{error}");
}

#[test]
fn a_full_disk_is_an_error() {
    if Path::new("/dev/full").exists() {
        let mut writer = MetricsWriter::create("/dev/full").unwrap();
        assert!(writer.write(&record(1)).unwrap_err().to_string().contains("/dev/full"));
    }
}

proptest! {
    #[test]
    fn a_file_cut_anywhere_resumes_with_all_whole_lines(cut in 0_usize..1000, resumed in 0_u64..10) {
        let file = fixture(8);
        let text = fs::read(&file.path).unwrap();
        let kept = &text[..cut.min(text.len())];
        fs::write(&file.path, kept).unwrap();
        MetricsWriter::resume(&file.path, resumed).unwrap().write(&record(99)).unwrap();
        let whole = kept.iter().filter(|&&byte| byte == b'\n').count() as u64;
        prop_assert_eq!(read(&file.path).unwrap().len() as u64, whole.min(resumed) + 1);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let file = fixture(0);
        fs::write(&file.path, bytes).unwrap();
        let _ = read(&file.path);
        let _ = MetricsWriter::resume(&file.path, 5);
    }
}
