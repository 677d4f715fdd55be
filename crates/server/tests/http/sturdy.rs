//! Clients that misbehave, many at a time.

use crate::support::{Answer, Running, Setup, text};
use keyfold_engine::Sampling;
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    time::Duration,
};

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Bytes of memory that this process holds, where the system tells.
fn memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(status.split(' ').nth(1)?.parse::<u64>().ok()? * 4096)
}

fn misbehave(server: &Running, dice: &mut Dice) {
    let good = json!({"prompt": "ab", "max_tokens": 40, "temperature": 1.0, "stream": dice.below(2) == 0});
    match dice.below(9) {
        // Leaves at a random moment.
        0..3 => {
            let mut stream = server.open("/v1/completions", &good);
            let mut part = vec![0; dice.below(2000) as usize + 1];
            let _ = stream.set_read_timeout(Some(Duration::from_millis(dice.below(20) + 1)));
            let _ = stream.read(&mut part);
        }
        // Sends half a request.
        3 => {
            let mut stream = server.connect();
            let whole = b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{\"prompt\"";
            let _ = stream.write_all(&whole[..dice.below(whole.len() as u64) as usize]);
        }
        // Sends what is no HTTP.
        4 => {
            let noise: Vec<u8> = (0..dice.below(500)).map(|_| dice.below(256) as u8).collect();
            let mut stream = server.connect();
            let _ = stream.write_all(&noise);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
        // Sends what is no request.
        5..7 => {
            let bodies: [(&[u8], u16); 8] = [
                (b"{\"prompt\": 5}", 400),
                (b"{\"prompt\": \"\xff\xfe\"}", 400),
                (b"{\"prompt\": [99999]}", 400),
                (b"{\"prompt\": \"a\", \"n\": \"many\"}", 400),
                (b"[[[[[[[[", 400),
                (b"null", 400),
                (b"{\"prompt\": \"a\", \"temperature\": 1e400}", 400),
                (b"{\"prompt\": \"a\", \"max_tokens\": -5}", 400),
            ];
            let (body, status) = bodies[dice.below(8) as usize];
            let answer =
                server.request("POST", "/v1/completions", "Content-Type: application/json\r\n", body);
            assert_eq!(answer.status, status, "{}", answer.body);
        }
        // Asks for more than there is.
        7 => {
            let long = json!({"prompt": "a".repeat(5000)});
            server.post("/v1/completions", &long).error(400, "context_length_exceeded");
            let headers = "Content-Type: application/json\r\nContent-Length: 99999999999\r\n";
            let mut stream = server.connect();
            let _ = stream.write_all(format!("POST /v1/completions HTTP/1.1\r\n{headers}\r\n").as_bytes());
            assert_eq!(Answer::read(stream).status, 413);
        }
        // Does as it should.
        _ => {
            let seed = dice.below(100);
            let body = json!({"prompt": "cd", "max_tokens": 20, "temperature": 1.0, "seed": seed});
            let sampling = Sampling { temperature: 1.0, seed, ..Sampling::greedy() };
            let answer = server.post("/v1/completions", &body);
            if answer.status == 200 {
                assert_eq!(answer.json()["choices"][0]["text"], text("cd", &sampling, 20));
            } else {
                answer.error(429, "queue_full");
            }
        }
    }
}

#[test]
fn two_hundred_clients_that_misbehave_harm_nobody() {
    let mut setup = Setup { delay: Duration::from_millis(1), ..Setup::default() };
    setup.engine.pages = 140;
    setup.limits.read_time = Duration::from_millis(500);
    let server = setup.start();
    let crowd = |seed: u64| {
        std::thread::scope(|scope| {
            for client in 0..200 {
                let server = &server;
                scope.spawn(move || {
                    let mut dice = Dice(seed * 1000 + client);
                    for _ in 0..5 {
                        misbehave(server, &mut dice);
                    }
                });
            }
        });
        server.settle();
    };
    crowd(1);
    let before = memory();
    crowd(2);
    crowd(3);
    if let (Some(before), Some(after)) = (before, memory()) {
        assert!(after < before + (48 << 20), "{before} bytes became {after}");
    }
    server.post("/v1/completions", &json!({"prompt": "ab"})).ok();
}

/// Seconds that the soak takes: short in a usual run, ten minutes with `KEYFOLD_SOAK=600`.
#[test]
fn memory_stays_flat_in_the_long_run() {
    let seconds = std::env::var("KEYFOLD_SOAK").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    let mut setup = Setup { delay: Duration::from_millis(1), ..Setup::default() };
    setup.engine.pages = 140;
    setup.limits.read_time = Duration::from_millis(500);
    let server = setup.start();
    let (began, whole) = (std::time::Instant::now(), Duration::from_secs(seconds));
    // A third of the time until all is warm.
    let warm = std::sync::OnceLock::new();
    std::thread::scope(|scope| {
        for client in 0..16 {
            let (server, warm) = (&server, &warm);
            scope.spawn(move || {
                let mut dice = Dice(77_000 + client);
                while began.elapsed() < whole {
                    misbehave(server, &mut dice);
                    if client == 0 && began.elapsed() > whole / 3 {
                        warm.get_or_init(memory);
                    }
                }
            });
        }
    });
    server.settle();
    if let (Some(Some(before)), Some(after)) = (warm.get(), memory()) {
        eprintln!("{before} bytes after {:?}, {after} after {whole:?}; {}", whole / 3, server.stats());
        assert!(after < before + (24 << 20), "{before} bytes became {after}");
    }
}

#[test]
fn who_reads_slowly_stalls_nobody_and_is_given_up() {
    let mut setup = Setup::default();
    setup.engine.max_len = 60_000;
    setup.engine.pages = 20_000;
    setup.engine.lookup = None;
    setup.limits.write_time = Duration::from_millis(500);
    let server = setup.start();
    // Fills the sockets' buffers, and reads nothing.
    let slow: Vec<_> = (0..4)
        .map(|client| {
            let body = json!({"prompt": "ab", "max_tokens": 50_000, "temperature": 1.0, "seed": client, "stream": true, "logprobs": 20});
            server.open("/v1/completions", &body)
        })
        .collect();
    for _ in 0..20 {
        server.post("/v1/completions", &json!({"prompt": "cd", "max_tokens": 20})).ok();
    }
    server.settle();
    drop(slow);
}

#[test]
fn asked_to_end_under_load_it_keeps_its_promises() {
    let mut server = Setup { delay: Duration::from_millis(2), ..Setup::default() }.start();
    let body = json!({"prompt": "ab", "max_tokens": 40, "temperature": 0, "stream": true});
    let want = text("ab", &Sampling::greedy(), 40);
    let accepted: Vec<_> = (0..60).map(|_| server.open("/v1/completions", &body)).collect();
    loop {
        let requests = &server.stats()["requests"];
        if requests["running"].as_u64().unwrap() + requests["waiting"].as_u64().unwrap() >= 40 {
            break;
        }
    }
    server.ask_to_stop();
    let mut whole = 0;
    for stream in accepted {
        let mut bytes = Vec::new();
        let mut stream = stream;
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        // Who was answered at all is answered to the end.
        if text.starts_with("HTTP/1.1 200") {
            assert!(text.contains("data: [DONE]"), "{text}");
            let joined: String = text
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
                .filter_map(|event| event["choices"][0]["text"].as_str().map(str::to_owned))
                .collect();
            assert_eq!(joined, want);
            whole += 1;
        }
    }
    assert!(whole >= 40, "{whole}");
    server.join();
}
