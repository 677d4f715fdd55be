use super::*;
use proptest::prelude::*;

fn run(attention: &str, params: u64, kv: u64, loss: f64) -> RunReport {
    RunReport {
        attention: attention.to_owned(),
        params,
        kv_bytes_per_token: kv,
        total_effective_rank: 2048,
        shared_latent_dim: 256,
        val_loss: loss,
        val_bits_per_byte: Some(loss / 2.5),
        recall_accuracy: None,
        train_tokens_per_s: 2588.4,
        decode_tokens_per_s: 412.25,
        peak_rss_mib: Some(1234.5),
        non_embedding_params: params / 2,
        kv_ratio_to_mha: Some(kv as f64 / 16384.0),
        steps: 1000,
        train_seconds: 801.2,
        summary: "8 heads of 64".to_owned(),
        sample: Some("Once upon a time".to_owned()),
        curve: vec![CurvePoint { tokens: 1024, loss: 8.0 }],
    }
}

fn report() -> Report {
    Report {
        data: "stories.txt".to_owned(),
        tokenizer: "bytes".to_owned(),
        tokens: 2_048_000,
        seed: 7,
        runs: vec![run("mha", 6_620_160, 16384, 2.3456), run("mfa-kr", 6_619_648, 1024, 2.3999)],
        setup: Setup {
            command: "keyfold compare --data stories.txt".to_owned(),
            version: "keyfold 0.1.0".to_owned(),
            machine: "2 cores".to_owned(),
            sequence_tokens: 256,
            batch_sequences: 8,
            val_tokens: 65536,
            decode_sequences: 4,
            decode_prompt_tokens: 1024,
            decode_new_tokens: 64,
        },
    }
}

#[test]
fn json_has_the_documented_fields_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    report().write(folder.path()).unwrap();
    let path = folder.path().join(JSON_FILE);
    assert_eq!(Report::read(&path).unwrap(), report());

    let value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for field in ["data", "tokenizer", "tokens", "seed", "runs"] {
        assert!(value.get(field).is_some(), "{field}");
    }
    let run = &value["runs"][0];
    for field in [
        "attention",
        "params",
        "kv_bytes_per_token",
        "total_effective_rank",
        "shared_latent_dim",
        "val_loss",
        "val_bits_per_byte",
        "recall_accuracy",
        "train_tokens_per_s",
        "decode_tokens_per_s",
        "peak_rss_mib",
    ] {
        assert!(run.get(field).is_some(), "{field}");
    }
    assert!(run["recall_accuracy"].is_null());
}

#[test]
fn a_report_without_the_additional_fields_is_read() {
    let text = r#"{"data":"d","tokenizer":"t","tokens":1,"seed":2,"runs":[{"attention":"mha","params":1,
        "kv_bytes_per_token":2,"total_effective_rank":3,"shared_latent_dim":4,"val_loss":null,
        "val_bits_per_byte":null,"recall_accuracy":0.5,"train_tokens_per_s":1,"decode_tokens_per_s":1,
        "peak_rss_mib":null}]}"#;
    let report: Report = serde_json::from_str(text).unwrap();
    assert!(report.runs[0].val_loss.is_nan());
    assert!(report.to_table().contains("NaN"));
    assert!(report.to_table().contains("50.0%"));
}

#[test]
fn a_wrong_report_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(JSON_FILE);
    for text in ["", "{", "[]", "{\"data\":1}", "\0"] {
        std::fs::write(&path, text).unwrap();
        assert!(Report::read(&path).unwrap_err().to_string().contains("report.json"));
    }
}

#[test]
fn the_terminal_table() {
    let table = "\
                 KV bytes      of  total  latent    val  bits/  train  decode   peak
attention  params  per token     MHA   rank     dim   loss   byte  tok/s   tok/s    MiB
---------------------------------------------------------------------------------------
mha         6.62M     16,384  100.0%  2,048     256  2.346  0.938  2,588     412  1,235
mfa-kr      6.62M      1,024    6.2%  2,048     256  2.400  0.960  2,588     412  1,235
";
    let expected: Vec<_> = table.lines().map(str::trim).collect();
    let text = report().to_table();
    assert_eq!(text.lines().map(str::trim).collect::<Vec<_>>(), expected, "\n{text}");
}

#[test]
fn the_page_has_an_aligned_table_and_says_how_it_was_measured() {
    let page = report().to_markdown();
    let table: Vec<_> = page.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(table.len(), 4);
    assert!(table.iter().all(|line| line.len() == table[0].len()), "{page}");
    for wanted in [
        "# 2 attention variants on stories.txt",
        "2,048,000 tokens (tokenizer: bytes, seed 7)",
        "![Loss over training tokens, and final loss over KV cache per token](loss.svg)",
        "| attention | params | KV bytes per token |",
        "**Parameters are matched**: from 6,619,648 to 6,620,160, 0.01 % apart (limit: 1 %).",
        "- Command: `keyfold compare --data stories.txt`",
        "64 tokens decoded after 1,024 cached ones in 4 sequences",
        "- **mfa-kr**: 8 heads of 64; 6,619,648 parameters (3,309,824 without",
        "### mha\n\n```text\nOnce upon a time\n```\n",
    ] {
        assert!(page.contains(wanted), "{wanted} in\n{page}");
    }
}

#[test]
fn unmatched_parameters_are_said_to_be() {
    let mut report = report();
    report.runs[0].params = 7_000_000;
    assert!(
        report
            .to_markdown()
            .contains("**Parameters are not matched**: from 6,619,648 to 7,000,000, 5.7 % apart.")
    );
    assert!((report.parameter_spread() - 0.05746).abs() < 1e-4);
    report.runs.clear();
    assert_eq!(report.parameter_spread(), 0.0);
    assert!(report.to_markdown().contains("There are no runs."));
    assert!(report.to_table().contains("attention"));
}

#[test]
fn hostile_text_stays_text() {
    let mut report = report();
    report.data = "a|b`c`\n# <script>".to_owned();
    report.setup.command = "``x`".to_owned();
    report.runs[0].attention = "m|ha".to_owned();
    report.runs[0].sample = Some("```\n# not a title\n````".to_owned());
    let page = report.to_markdown();
    assert!(page.starts_with("# 2 attention variants on a\\|b\\`c\\` # \\<script>\n"), "{page}");
    assert!(page.contains("- Command: ``` ``x` ```\n"), "{page}");
    assert!(page.contains("| m\\|ha"), "{page}");
    assert!(page.contains("\n`````text\n```\n# not a title\n````\n`````\n"), "{page}");
}

proptest! {
    #[test]
    fn the_terminal_table_fits(
        name in "\\PC{0,80}",
        counts in any::<[u64; 4]>(),
        numbers in any::<[f64; 7]>(),
    ) {
        let [params, kv, rank, dim] = counts;
        let [loss, bits, recall, train, decode, peak, ratio] = numbers;
        let run = RunReport {
            attention: name,
            params,
            kv_bytes_per_token: kv,
            total_effective_rank: rank,
            shared_latent_dim: dim,
            val_loss: loss,
            val_bits_per_byte: Some(bits),
            recall_accuracy: Some(recall),
            train_tokens_per_s: train,
            decode_tokens_per_s: decode,
            peak_rss_mib: Some(peak),
            kv_ratio_to_mha: Some(ratio),
            ..RunReport::default()
        };
        let table = Report { runs: vec![run], ..Report::default() }.to_table();
        for line in table.lines() {
            prop_assert!(line.chars().count() <= 110, "{}", line);
        }
    }
}
