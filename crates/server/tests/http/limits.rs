//! What the server does not put up with.

use crate::support::{Answer, Setup};
use serde_json::json;
use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

#[test]
fn a_key_is_asked_for() {
    let server = Setup { keys: vec!["first".to_owned(), "second".to_owned()], ..Setup::default() }.start();
    let get = |path: &str, headers: &str| server.request("GET", path, headers, b"");
    for path in ["/v1/models", "/metrics", "/stats"] {
        let answer = get(path, "");
        answer.error(401, "invalid_api_key");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        for wrong in
            ["first", "Basic first", "Bearer", "Bearer ", "Bearer firs", "Bearer first2", "Bearer \u{e9}"]
        {
            get(path, &format!("Authorization: {wrong}\r\n")).error(401, "invalid_api_key");
        }
        for key in ["first", "second"] {
            assert_eq!(get(path, &format!("Authorization: Bearer {key}\r\n")).status, 200);
        }
    }
    server.post("/v1/completions", &json!({"prompt": "a"})).error(401, "invalid_api_key");
    for open in ["/", "/health", "/page/app.js"] {
        assert_eq!(get(open, "").status, 200);
    }
}

#[test]
fn a_body_has_a_type_a_size_and_a_form() {
    let mut setup = Setup::default();
    setup.limits.body_bytes = 1000;
    let server = setup.start();
    let post = |headers: &str, body: &[u8]| server.request("POST", "/v1/completions", headers, body);
    post("", b"{}").error(415, "unsupported_media_type");
    post("Content-Type: text/plain\r\n", b"{\"prompt\": \"a\"}").error(415, "unsupported_media_type");
    let json = "Content-Type: application/json; charset=utf-8\r\n";
    post(json, &[b' '; 1001]).error(413, "body_too_large");
    post(json, b"{\"prompt\"").error(400, "invalid_value");
    post(json, b"\xff\xfe").error(400, "invalid_value");
    assert_eq!(post(json, b"{\"prompt\": \"a\"}").status, 200);
    // Without a length it is counted.
    let mut request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..20 {
        request.extend(format!("64\r\n{}\r\n", " ".repeat(100)).bytes());
    }
    request.extend(b"0\r\n\r\n");
    server.raw(&request).error(413, "body_too_large");
}

#[test]
fn a_full_queue_says_so() {
    let mut setup = Setup { delay: Duration::from_millis(20), ..Setup::default() };
    (setup.engine.max_running, setup.limits.queue) = (2, 3);
    let server = setup.start();
    let body = json!({"prompt": "ab", "max_tokens": 30, "temperature": 1.0});
    let open: Vec<_> = (0..5).map(|_| server.open("/v1/completions", &body)).collect();
    while server.stats()["requests"]["waiting"] != 3 {}
    let answer = server.post("/v1/completions", &body);
    answer.error(429, "queue_full");
    let seconds: u64 = answer.headers["retry-after"].parse().unwrap();
    assert!((1..=120).contains(&seconds));
    // Who is in is served.
    for stream in open {
        Answer::read(stream).ok();
    }
    server.settle();
    // A request that needs more room than is left gets none of it.
    let many = json!({"prompt": "ab", "n": 6, "max_tokens": 2});
    server.post("/v1/completions", &many).error(429, "queue_full");
    server.post("/v1/completions", &json!({"prompt": "ab", "n": 5, "max_tokens": 2})).ok();
}

#[test]
fn an_answer_has_its_time() {
    let mut setup = Setup { delay: Duration::from_millis(20), ..Setup::default() };
    setup.limits.request_time = Duration::from_millis(300);
    let server = setup.start();
    let body = json!({"prompt": "ab", "max_tokens": 1000, "temperature": 1.0});
    let began = Instant::now();
    server.post("/v1/completions", &body).error(504, "timeout");
    assert!(began.elapsed() < Duration::from_secs(5));
    server.settle();
}

#[test]
fn who_sends_slowly_is_not_waited_for() {
    let mut setup = Setup::default();
    setup.limits.read_time = Duration::from_millis(200);
    let server = setup.start();
    let mut head = server.connect();
    head.write_all(b"POST /v1/completions HTT").unwrap();
    let mut body = server.connect();
    let start = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{";
    body.write_all(start).unwrap();
    Answer::read(body).error(408, "request_timeout");
    let mut rest = Vec::new();
    // Closed, with or without a word.
    let _ = head.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("200"));
}

#[test]
fn a_head_has_a_size() {
    let server = Setup::default().start();
    let answer = server.request("GET", "/health", &format!("X-Long: {}\r\n", "x".repeat(300_000)), b"");
    assert_eq!(answer.status, 431);
    let many: String = (0..200).map(|i| format!("X-{i}: 1\r\n")).collect();
    assert_eq!(server.request("GET", "/health", &many, b"").status, 431);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn no_more_connections_than_allowed_are_served() {
    let mut setup = Setup::default();
    (setup.limits.connections, setup.limits.read_time) = (2, Duration::from_millis(300));
    let server = setup.start();
    let idle: Vec<_> = (0..2).map(|_| server.connect()).collect();
    // The third waits until the idle ones are given up.
    let began = Instant::now();
    assert_eq!(server.get("/health").status, 200);
    assert!(began.elapsed() > Duration::from_millis(100), "{:?}", began.elapsed());
    drop(idle);
}

#[test]
fn names_of_requests_are_kept_if_they_are_plain() {
    let server = Setup::default().start();
    let name = |given: &str| {
        let answer = server.request("GET", "/health", &format!("X-Request-Id: {given}\r\n"), b"");
        answer.headers["x-request-id"].clone()
    };
    assert_eq!(name("abc-1.2_3"), "abc-1.2_3");
    for bad in ["a b", "é", &"x".repeat(65), ""] {
        assert_eq!(name(bad).len(), 16);
    }
}
