//! Answers as they are made.

use crate::support::{Answer, Setup, text};
use keyfold_engine::Sampling;
use serde_json::{Value, json};
use std::{io::Read, time::Duration};

#[test]
fn a_streamed_text_is_the_whole_text() {
    let server = Setup::default().start();
    for stop in [json!(null), json!(["{", "ghgh"])] {
        let mut body = json!({"prompt": "ab", "max_tokens": 40, "temperature": 0, "logprobs": 1, "echo": true, "stop": stop});
        let whole = server.post("/v1/completions", &body).ok();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let mut events = server.post("/v1/completions", &body).events();
        let last = events.pop().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
        assert!(events.iter().all(|event| event["usage"].is_null() && event["id"] == last["id"]));
        let joined: String =
            events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(joined, whole["choices"][0]["text"].as_str().unwrap());
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let joined: Vec<Value> = events
                .iter()
                .filter_map(|event| event["choices"][0]["logprobs"][list].as_array())
                .flatten()
                .cloned()
                .collect();
            assert_eq!(json!(joined), whole["choices"][0]["logprobs"][list], "{list}");
        }
        let reasons: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["finish_reason"]).collect();
        assert!(reasons[..reasons.len() - 1].iter().all(|reason| reason.is_null()));
        assert_eq!(reasons.last().unwrap(), &&whole["choices"][0]["finish_reason"]);
    }
}

#[test]
fn a_streamed_answer_is_the_whole_answer() {
    let server = Setup::default().start();
    let messages = json!([{"role": "user", "content": "u"}]);
    let mut body = json!({"messages": messages, "max_tokens": 20, "n": 3, "seed": 9, "temperature": 1.0});
    let whole = server.post("/v1/chat/completions", &body).ok();
    body["stream"] = json!(true);
    let events = server.post("/v1/chat/completions", &body).events();
    for index in 0..3 {
        let mine =
            || events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == index);
        assert_eq!(mine().next().unwrap()["delta"]["role"], "assistant");
        let joined: String = mine().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(joined, whole["choices"][index]["message"]["content"].as_str().unwrap());
        assert_eq!(mine().next_back().unwrap()["finish_reason"], "length");
    }
}

#[test]
fn tokens_come_as_they_are_made() {
    let server = Setup { delay: Duration::from_millis(20), ..Setup::default() }.start();
    let body = json!({"prompt": "ab", "max_tokens": 30, "temperature": 1.0, "stream": true});
    let mut stream = server.open("/v1/completions", &body);
    let mut reads = 0;
    let mut part = [0; 65536];
    while let Ok(1..) = stream.read(&mut part) {
        reads += 1;
    }
    assert!(reads > 10, "{reads} reads");
}

#[test]
fn many_at_once_get_what_each_gets_alone() {
    let server = Setup::default().start();
    std::thread::scope(|scope| {
        for client in 0..24u64 {
            let server = &server;
            scope.spawn(move || {
                let prompt = format!("client {} asks{}", client % 7, "!".repeat(client as usize));
                let sampling =
                    Sampling { temperature: (client % 2) as f32, seed: client, ..Sampling::greedy() };
                let body = json!({
                    "prompt": prompt, "max_tokens": 50, "temperature": sampling.temperature, "seed": client, "stream": client % 3 == 0,
                });
                let answer = server.post("/v1/completions", &body);
                let got = if client % 3 == 0 {
                    answer.events().iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect()
                } else {
                    answer.ok()["choices"][0]["text"].as_str().unwrap().to_owned()
                };
                assert_eq!(got, text(&prompt, &sampling, 50));
            });
        }
    });
    server.settle();
}

#[test]
fn an_error_within_a_stream_is_an_event() {
    let server = Setup { broken: Some(u32::from(b'!')), ..Setup::default() }.start();
    let body = json!({"prompt": "ab!", "stream": true});
    let answer = server.post("/v1/completions", &body);
    assert_eq!(answer.status, 200);
    let event: Value = serde_json::from_str(answer.body.trim().strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(event["error"]["code"], "internal_error");
    // The next one is served.
    server.post("/v1/completions", &json!({"prompt": "ab"})).ok();
    server.post("/v1/completions", &json!({"prompt": "ab!"})).error(500, "internal_error");
}

#[test]
fn who_leaves_is_not_worked_for() {
    let server = Setup { delay: Duration::from_millis(5), ..Setup::default() }.start();
    let body = json!({"prompt": "ab", "max_tokens": 1000, "temperature": 1.0, "stream": true});
    let mut stream = server.open("/v1/completions", &body);
    let mut some = [0; 300];
    stream.read_exact(&mut some).unwrap();
    drop(stream);
    // Neither is who waits for the whole.
    drop(server.open("/v1/completions", &json!({"prompt": "cd", "max_tokens": 1000, "temperature": 1.0})));
    server.settle();
    let made = server.stats()["tokens"]["made"].as_u64().unwrap();
    assert!(made < 500, "{made} tokens were made");
}

#[test]
fn a_server_that_ends_lets_answers_end() {
    let mut server = Setup { delay: Duration::from_millis(5), ..Setup::default() }.start();
    let body = json!({"prompt": "ab", "max_tokens": 60, "temperature": 0, "stream": true});
    let streams: Vec<_> = (0..8).map(|_| server.open("/v1/completions", &body)).collect();
    let plain = server.open("/v1/completions", &json!({"prompt": "ab", "max_tokens": 60, "temperature": 0}));
    while server.stats()["requests"]["running"] != 9 {}
    server.ask_to_stop();
    let want = text("ab", &Sampling::greedy(), 60);
    for stream in streams {
        let events = Answer::read(stream).events();
        let joined: String =
            events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(joined, want);
    }
    assert_eq!(Answer::read(plain).ok()["choices"][0]["text"], want);
    server.join();
    assert!(std::net::TcpStream::connect(server.address).is_err());
}

#[test]
fn after_the_time_of_grace_answers_are_ended() {
    let mut setup = Setup { delay: Duration::from_millis(20), ..Setup::default() };
    setup.limits.grace = Duration::from_millis(300);
    let mut server = setup.start();
    let body = json!({"prompt": "ab", "max_tokens": 1000, "temperature": 1.0, "stream": true});
    let stream = server.open("/v1/completions", &body);
    let plain =
        server.open("/v1/completions", &json!({"prompt": "ab", "max_tokens": 1000, "temperature": 1.0}));
    while server.stats()["requests"]["running"] != 2 {}
    server.ask_to_stop();
    assert!(Answer::read(stream).body.contains("\"code\":\"stopping\""));
    Answer::read(plain).error(503, "stopping");
    server.join();
}
