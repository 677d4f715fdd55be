use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::*;

type Asked = Arc<Mutex<Vec<String>>>;

/// A hub on this machine with one model, that answers as the real one does until the process ends. Files of `broken` are
/// answered with an error as long as they are in it.
fn hub(files: &[(&str, &str)], broken: &Arc<Mutex<Vec<String>>>) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let files: BTreeMap<String, String> = files.iter().map(|(n, c)| (n.to_string(), c.to_string())).collect();
    let (asked, broken) = (Asked::default(), broken.clone());
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut block = [0; 1024];
            while !request.ends_with(b"\r\n\r\n") {
                let n = stream.read(&mut block).unwrap();
                if n == 0 {
                    break;
                }
                request.extend_from_slice(&block[..n]);
            }
            let request = String::from_utf8(request).unwrap();
            let path = request.split_whitespace().nth(1).unwrap_or_default().to_owned();
            log.lock().unwrap().push(path.clone());
            let (status, extra, body) = if path.starts_with("/api/models/") {
                let siblings: Vec<Value> = files.keys().map(|name| json!({ "rfilename": name })).collect();
                ("200 OK", String::new(), json!({"siblings": siblings, "sha": "c0ffee"}).to_string())
            } else {
                let name = path.rsplit('/').next().unwrap().to_owned();
                match files.get(&name).filter(|_| !broken.lock().unwrap().contains(&name)) {
                    None => ("404 Not Found", String::new(), String::new()),
                    Some(content) => {
                        let lower = request.to_lowercase();
                        let range = lower.lines().find_map(|line| line.strip_prefix("range: bytes="));
                        let (from, to) = range.unwrap_or("0-").split_once('-').unwrap();
                        let from: usize = from.parse().unwrap();
                        let to = to.parse().map_or(content.len(), |to: usize| (to + 1).min(content.len()));
                        let extra = format!(
                            "content-range: bytes {from}-{}/{}\r\netag: \"{name}\"\r\nx-repo-commit: c0ffee\r\n",
                            to - 1,
                            content.len()
                        );
                        ("206 Partial Content", extra, content[from..to].to_owned())
                    }
                }
            };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{extra}connection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    (endpoint, asked)
}

const ONE: [(&str, &str); 5] = [
    ("config.json", "{}"),
    ("tokenizer.json", "{\"a\": 1}"),
    ("model.safetensors", "the weights"),
    ("pytorch_model.bin", "pickle"),
    ("onnx.data", "other"),
];

#[test]
fn a_model_is_pinned_to_a_commit_and_appears_whole() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    let (endpoint, asked) = hub(&ONE, &Arc::default());
    assert_eq!(model_from(&endpoint, None, "owner/name", "v1", &out).unwrap(), "c0ffee");
    let mut names: Vec<_> =
        std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "source.json", "tokenizer.json"]);
    assert_eq!(std::fs::read_to_string(out.join("model.safetensors")).unwrap(), "the weights");
    let source: Value = serde_json::from_slice(&std::fs::read(out.join("source.json")).unwrap()).unwrap();
    assert_eq!(source, json!({"name": "owner/name", "revision": "v1", "commit": "c0ffee"}));
    let asked = asked.lock().unwrap();
    assert!(asked[0].ends_with("/owner/name/revision/v1"), "{asked:?}");
    assert!(asked[1..].iter().all(|path| path.contains("/owner/name/resolve/c0ffee/")), "{asked:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    // What is there is never written over.
    let error = model_from(&endpoint, None, "owner/name", "v1", &out).unwrap_err().to_string();
    assert!(error.contains("exists"), "{error}");
}

#[test]
fn shards_are_taken_and_a_broken_download_goes_on() {
    let index = r#"{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors", "c": "model-1-of-2.safetensors"}}"#;
    let files = [
        ("config.json", "{}"),
        ("model.safetensors.index.json", index),
        ("model-1-of-2.safetensors", "first"),
        ("model-2-of-2.safetensors", "second"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    let broken = Arc::new(Mutex::new(vec!["model-2-of-2.safetensors".to_owned()]));
    let (endpoint, asked) = hub(&files, &broken);
    let error = model_from(&endpoint, None, "owner/name", "main", &out).unwrap_err().to_string();
    assert!(
        error.contains("the hub refused model-2-of-2.safetensors of ") && error.contains("404"),
        "{error}"
    );
    assert!(!out.exists());
    broken.lock().unwrap().clear();
    asked.lock().unwrap().clear();
    model_from(&endpoint, None, "owner/name", "main", &out).unwrap();
    assert_eq!(std::fs::read_to_string(out.join("model-2-of-2.safetensors")).unwrap(), "second");
    let asked = asked.lock().unwrap();
    assert!(!asked.iter().any(|path| path.contains("model-1-of-2")), "{asked:?}");
}

#[test]
fn what_cannot_be_had_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    let (endpoint, _) = hub(&ONE[..2], &Arc::default());
    let fail = |endpoint: &str, name: &str, revision: &str| {
        let error = model_from(endpoint, None, name, revision, &out).unwrap_err().to_string();
        assert!(!out.exists());
        error
    };
    assert!(fail(&endpoint, "owner/name", "main").contains("no safetensors weights"));
    for name in ["", "a/b/c", "../up", "a b", "/etc", "a/.hidden"] {
        assert!(fail(&endpoint, name, "main").contains("OWNER/NAME"), "{name}");
    }
    assert!(fail(&endpoint, "owner/name", "../x").contains("revision"));
    // Nothing listens on the discard port.
    std::fs::remove_dir_all(folder.path().join(".model-download")).unwrap();
    let error = fail("http://127.0.0.1:9", "owner/name", "main");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    assert!(error.contains("the hub could not be reached") && error.contains("owner/name"), "{error}");
}
