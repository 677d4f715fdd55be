//! `keyfold serve` and `keyfold bench serve`, as programs.

use crate::support::{keyfold, keys, refused, succeed, trained};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    fn start(extra: &[&str]) -> Self {
        Self::of(trained().to_str().unwrap(), &[&["--kv-memory", "1MiB"], extra].concat())
    }

    fn of(model: &str, extra: &[&str]) -> Self {
        let args = [&["serve", model, "--port", "0"], extra].concat();
        let mut child =
            keyfold(Path::new("."), &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line:?}"));
        Self { address: address.to_owned(), child }
    }

    fn post(&self, body: &Value) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let body = body.to_string();
        let head =
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json";
        write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap())
    }

    /// Sends SIGTERM; what the server said on standard error, and whether it ended well.
    fn terminate(mut self) -> (String, bool) {
        let id = self.child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (said, self.child.wait().unwrap().success())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_is_served_is_what_is_generated() {
    let model = trained().to_str().unwrap();
    let serving = Serving::start(&["--lookup", "3"]);
    for (prompt, temperature, seed) in [("Day 7: the", "0", 0), ("Day 7: the old", "0.8", 3), ("", "1", 5)] {
        let seed_text = seed.to_string();
        let args =
            ["generate", model, "--max-tokens", "20", "--prompt", prompt, "--temperature", temperature];
        let made = succeed(Path::new("."), &[&args[..], &["--seed", &seed_text]].concat());
        let temperature: f64 = temperature.parse().unwrap();
        let body = json!({"prompt": prompt, "max_tokens": 20, "temperature": temperature, "seed": seed, "echo": true});
        let (status, json) = serving.post(&body);
        assert_eq!(status, 200, "{json}");
        assert_eq!(json["choices"][0]["text"].as_str().unwrap(), made.strip_suffix('\n').unwrap());
        assert_eq!(json["model"], "run");
    }
    let (status, json) = serving.post(&json!({"prompt": "a", "temperature": 9}));
    assert_eq!((status, &json["error"]["param"]), (400, &json!("temperature")));
    let (said, well) = serving.terminate();
    assert!(well, "{said}");
    assert!(said.contains("stopping once answers have ended"), "{said}");
    assert!(said.contains("made_tokens=20") && !said.contains("Day 7"), "{said}");
}

/// Published models (see `real.rs`): many requests at a time over a tight cache.
#[test]
fn published_models_are_served_as_generated() {
    let prompts = [
        "The capital of France is",
        "Once upon a time there was a small model that",
        "Water boils at a temperature of",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,",
        "Once upon a time there was a large model that",
        "The three laws of thermodynamics are: first,",
        "import numpy as np\n\ndef mean(values):\n",
        "Dear Sir or Madam, I am writing to you because",
    ];
    for model in crate::real::models() {
        let model = model.to_str().unwrap();
        let generate = |prompt: &str| {
            let args = ["generate", model, "--max-tokens", "24", "--temperature", "0", "--prompt", prompt];
            succeed(Path::new("."), &args).strip_suffix('\n').unwrap().to_owned()
        };
        let want: Vec<String> = prompts.iter().map(|prompt| generate(prompt)).collect();
        let tight =
            ["--kv-memory", "16MiB", "--context", "128", "--page-size", "8", "--max-batch-tokens", "24"];
        let serving = Serving::of(model, &[&tight[..], &["--max-running", "8", "--lookup", "4"]].concat());
        std::thread::scope(|scope| {
            for (prompt, want) in prompts.iter().zip(&want) {
                let serving = &serving;
                scope.spawn(move || {
                    let body = json!({"prompt": prompt, "max_tokens": 24, "temperature": 0, "echo": true});
                    for _ in 0..2 {
                        let (status, json) = serving.post(&body);
                        assert_eq!(status, 200, "{json}");
                        assert_eq!(json["choices"][0]["text"].as_str().unwrap(), want);
                    }
                });
            }
        });
    }
}

#[test]
fn texts_are_logged_only_if_asked_for() {
    let serving = Serving::start(&["--log-prompts", "--name", "tiny"]);
    let (status, json) = serving.post(&json!({"prompt": "Day 7: the", "model": "tiny"}));
    assert_eq!(status, 200, "{json}");
    assert!(serving.terminate().0.contains("Day 7: the"));
}

#[test]
fn a_server_is_measured() {
    let model = trained().to_str().unwrap();
    let args =
        ["bench", "serve", model, "--kv-memory", "1MiB", "--requests", "6", "--prompt", "9", "--tokens", "5"];
    let small = ["--ids", "200", "--json"];
    for load in [["--concurrency", "3"], ["--rate", "200"]] {
        let told = succeed(Path::new("."), &[&args[..], &small, &load].concat());
        let report: Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&report["requests"], &report["failed"]), (&json!(6), &json!(0)));
        assert_eq!((&report["prompt_tokens"], &report["made_tokens"]), (&json!(54), &json!(30)));
        assert!(keys(&report["ttft_ms"]).into_iter().eq(["mean", "p50", "p90", "p99"]));
        assert!(report["tpot_ms"]["p50"].as_f64().unwrap() > 0.0);
    }
    let serving = Serving::start(&[]);
    let url = format!("http://{}", serving.address);
    let told = succeed(
        Path::new("."),
        &[
            "bench",
            "serve",
            "--url",
            &url,
            "--requests",
            "2",
            "--ids",
            "200",
            "--prompt",
            "4",
            "--tokens",
            "2",
        ],
    );
    assert!(told.starts_with("2 requests (0 failed)"), "{told}");
}

#[test]
fn what_cannot_be_served_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = trained().to_str().unwrap();
    let refuse = |extra: &[&str]| refused(folder.path(), &[&["serve", model, "--port", "0"], extra].concat());
    let cases: [(&[&str], &str); 7] = [
        (&["--kv-memory", "1KiB"], "--kv-memory is 1.0 KiB: expected at least"),
        (&["--kv-memory", "900TiB"], "--kv-memory is 900 TiB: expected at most"),
        (&["--kv-memory", "much"], "expected a size such as"),
        (&["--context", "4096"], "--context is 4096: expected 2 to"),
        (&["--max-batch-tokens", "3"], "max_batch_tokens is 3: expected at least 64"),
        (&["--api-key-file", "none"], "none: "),
        (&["--host", "256.0.0.1"], "cannot listen"),
    ];
    for (args, message) in cases {
        let said = refuse(args);
        assert!(said.contains(message), "{args:?}: {said}");
    }
    fs::write(folder.path().join("keys"), "# none\n\n").unwrap();
    assert!(refuse(&["--api-key-file", "keys"]).contains("expected a key on a line"));
    assert!(refused(folder.path(), &["serve", "nowhere"]).contains("nowhere"));
}
