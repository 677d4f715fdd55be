use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use super::*;

const WITHOUT_CHECKSUM: HubCorpus =
    HubCorpus { name: "sample", file: "folder/sample.txt", sha256: None, ..CORPORA[0] };

/// A hub on this machine that answers `requests` requests with `content`, as the real one does.
fn hub(content: &'static str, requests: usize) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let serve = move || {
        (0..requests)
            .map(|_| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                let mut block = [0; 1024];
                while !request.ends_with(b"\r\n\r\n") {
                    let n = stream.read(&mut block).unwrap();
                    request.extend_from_slice(&block[..n]);
                }
                let request = String::from_utf8(request).unwrap();
                let range = request.lines().find_map(|l| l.to_lowercase().strip_prefix("range: bytes=").map(str::to_string));
                let (from, to) = match range.as_deref().unwrap_or("0-").split_once('-').unwrap() {
                    (from, "") => (from.parse().unwrap(), content.len()),
                    (from, to) => (from.parse().unwrap(), to.parse::<usize>().unwrap() + 1),
                };
                let body = &content[from..to];
                write!(
                    stream,
                    "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{}\r\n\
                     etag: \"abc\"\r\nx-repo-commit: 0123\r\nconnection: close\r\n\r\n{body}",
                    body.len(), to - 1, content.len(),
                )
                .unwrap();
                request.lines().next().unwrap().to_string()
            })
            .collect()
    };
    (endpoint, std::thread::spawn(serve))
}

/// An address on this machine where nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn a_file_is_fetched_checked_and_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, server) = hub("the whole text", 2);
    let path = fetch_from(&endpoint, &WITHOUT_CHECKSUM, folder.path()).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "the whole text");
    let asked = server.join().unwrap();
    assert!(
        asked[0].contains("/datasets/TokenBender/tinyshakespeare/resolve/main/folder/sample.txt"),
        "{asked:?}"
    );
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");

    assert_eq!(fetch_from(&nobody(), &WITHOUT_CHECKSUM, folder.path()).unwrap(), path);
    std::fs::write(&path, "another text").unwrap();
    let error = fetch_from(&nobody(), &WITHOUT_CHECKSUM, folder.path()).unwrap_err().to_string();
    assert!(error.contains("first download") && error.contains("sample.txt"), "{error}");
}

#[test]
fn a_wrong_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, server) = hub("not Shakespeare", 2);
    let error = fetch_from(&endpoint, &CORPORA[0], folder.path()).unwrap_err();
    assert!(matches!(error, DataError::Checksum { .. }), "{error}");
    server.join().unwrap();
}

#[test]
fn without_a_connection_the_error_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let error = fetch_from(&nobody(), &CORPORA[1], folder.path()).unwrap_err().to_string();
    assert!(error.contains("could not be reached") && error.contains("pass its path"), "{error}");
    assert!(error.contains("TinyStoriesV2-GPT4-train.txt"), "{error}");
}

#[test]
fn a_file_put_in_place_is_used() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/tinyshakespeare.txt");
    if !shared.exists() {
        eprintln!("skipped: no tinyshakespeare.txt beside the repository");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(shared, folder.path().join("tinyshakespeare.txt")).unwrap();
    fetch_from(&nobody(), &CORPORA[0], folder.path()).unwrap();
}

#[test]
fn the_table_is_sound() {
    for corpus in CORPORA {
        assert_eq!(super::corpus(corpus.name).unwrap(), corpus);
        assert!(corpus.sha256.is_none_or(|s| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit())));
        assert!(!corpus.repo.is_empty() && !corpus.licence.is_empty() && corpus.bytes > 0);
    }
    let error = super::corpus("nothing").unwrap_err().to_string();
    assert!(error.contains("tinyshakespeare") && error.contains("nothing"), "{error}");
}
