//! What the paths answer.

use crate::support::{Setup, text};
use keyfold_engine::Sampling;
use serde_json::{Value, json};

fn greedy() -> Sampling {
    Sampling::greedy()
}

#[test]
fn a_completion_is_the_models_text() {
    let server = Setup::default().start();
    let body = json!({"model": "tiny", "prompt": "ab", "max_tokens": 12, "temperature": 0});
    let answer = server.post("/v1/completions", &body);
    let json = answer.ok();
    assert_eq!(json["object"], "text_completion");
    assert_eq!(json["model"], "tiny");
    assert!(json["id"].as_str().unwrap().ends_with(&answer.headers["x-request-id"]));
    assert_eq!(json["choices"][0]["text"], text("ab", &greedy(), 12));
    assert_eq!(json["choices"][0]["finish_reason"], "length");
    assert_eq!(json["choices"][0]["logprobs"], Value::Null);
    let usage = json!({
        "prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0},
    });
    assert_eq!(json["usage"], usage);
}

#[test]
fn many_prompts_and_texts_come_in_order() {
    let server = Setup::default().start();
    let body = json!({"prompt": ["ab", "cd"], "n": 2, "max_tokens": 6, "seed": 5, "temperature": 1.0});
    let json = server.post("/v1/completions", &body).ok();
    let sampled = |seed| Sampling { temperature: 1.0, seed, ..greedy() };
    let want = ["ab", "ab", "cd", "cd"]
        .iter()
        .zip([5, 6, 5, 6])
        .map(|(prompt, seed)| text(prompt, &sampled(seed), 6));
    for (index, want) in want.enumerate() {
        assert_eq!(json["choices"][index]["index"], index);
        assert_eq!(json["choices"][index]["text"], want);
    }
    assert_eq!(
        (json["usage"]["prompt_tokens"].clone(), json["usage"]["completion_tokens"].clone()),
        (json!(4), json!(24))
    );
    let ids = json!({"prompt": [[97, 98], [99, 100]], "max_tokens": 6, "temperature": 0});
    let by_id = server.post("/v1/completions", &ids).ok();
    assert_eq!(by_id["choices"][1]["text"], text("cd", &greedy(), 6));
}

#[test]
fn a_repetition_penalty_reaches_the_engine() {
    let server = Setup::default().start();
    let ask = |penalty: Value| {
        let body = json!({"prompt": "ab", "max_tokens": 12, "temperature": 1.0, "seed": 2, "repetition_penalty": penalty});
        server.post("/v1/completions", &body).ok()["choices"][0]["text"].clone()
    };
    let want = |repetition_penalty| {
        let sampling = Sampling { temperature: 1.0, seed: 2, repetition_penalty, ..greedy() };
        text("ab", &sampling, 12)
    };
    assert_eq!(ask(json!(1.25)), want(1.25));
    assert_eq!(ask(Value::Null), want(1.0));
    assert_ne!(want(1.25), want(1.0));
}

#[test]
fn a_stop_string_ends_a_text() {
    let server = Setup::default().start();
    let whole = text("ab", &greedy(), 30);
    let stop = &whole[10..13];
    let body = json!({"prompt": "ab", "max_tokens": 30, "temperature": 0, "stop": [stop]});
    let json = server.post("/v1/completions", &body).ok();
    assert_eq!(json["choices"][0]["text"], whole[..whole.find(stop).unwrap()]);
    assert_eq!(json["choices"][0]["finish_reason"], "stop");
}

#[test]
fn an_echo_can_tell_what_the_prompt_was_worth() {
    let server = Setup::default().start();
    let body = json!({"prompt": "abc", "max_tokens": 1, "temperature": 0, "echo": true, "logprobs": 2});
    let json = server.post("/v1/completions", &body).ok();
    let choice = &json["choices"][0];
    let new = text("abc", &greedy(), 1);
    assert_eq!(choice["text"], format!("abc{new}"));
    let lists = &choice["logprobs"];
    assert_eq!(lists["tokens"], json!(["a", "b", "c", new]));
    assert_eq!(lists["text_offset"], json!([0, 1, 2, 3]));
    let each = lists["token_logprobs"].as_array().unwrap();
    assert!(each[0].is_null() && each[1..].iter().all(Value::is_number), "{lists}");
    assert!(lists["top_logprobs"][0].is_null());
    let top = lists["top_logprobs"][1].as_object().unwrap();
    assert!(top.contains_key("b") && (2..=3).contains(&top.len()), "{top:?}");
    // Read alone, the prompt is worth the same.
    let read = json!({"prompt": "abc", "max_tokens": 0, "echo": true, "logprobs": 2});
    let read = server.post("/v1/completions", &read).ok();
    assert_eq!(read["choices"][0]["text"], "abc");
    assert_eq!(read["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap()[..], each[..3]);
    assert_eq!(read["usage"]["completion_tokens"], 0);
    // Without log-probabilities an echo is the prompt before the text.
    let plain = json!({"prompt": [97, 98, 99], "max_tokens": 1, "temperature": 0, "echo": true});
    assert_eq!(server.post("/v1/completions", &plain).ok()["choices"][0]["text"], format!("abc{new}"));
}

#[test]
fn the_best_of_several_is_given() {
    let server = Setup::default().start();
    let body = |extra: Value| {
        let mut body = json!({"prompt": "ab", "max_tokens": 5, "temperature": 1.0, "seed": 1, "logprobs": 0});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let all = server.post("/v1/completions", &body(json!({"n": 6}))).ok();
    let likely = |choice: &Value| -> f64 {
        choice["logprobs"]["token_logprobs"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).sum()
    };
    let best = all["choices"].as_array().unwrap().iter().map(likely).fold(f64::MIN, f64::max);
    let json = server.post("/v1/completions", &body(json!({"n": 1, "best_of": 6}))).ok();
    assert_eq!(json["choices"].as_array().unwrap().len(), 1);
    assert!((likely(&json["choices"][0]) - best).abs() < 1e-6);
    assert_eq!(json["usage"]["completion_tokens"], 30);
}

#[test]
fn a_conversation_goes_through_the_template() {
    let server = Setup::default().start();
    let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]);
    let body =
        json!({"messages": messages, "max_tokens": 9, "temperature": 0, "logprobs": true, "top_logprobs": 1});
    let json = server.post("/v1/chat/completions", &body).ok();
    let want = text("system: s\nuser: u\nassistant: ", &greedy(), 9);
    assert_eq!(json["object"], "chat.completion");
    let message = &json["choices"][0]["message"];
    assert_eq!((&message["role"], &message["content"]), (&json!("assistant"), &json!(want.trim_start())));
    let content = json["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 9);
    assert_eq!(content[0]["bytes"], json!([want.as_bytes()[0]]));
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 1);
    // What was said stays in the cache.
    let again = server.post("/v1/chat/completions", &body).ok();
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 24);
    let without = Setup { template: false, ..Setup::default() }.start();
    let why = without.post("/v1/chat/completions", &body).error(400, "unsupported_parameter");
    assert!(why.contains("no chat template"), "{why}");
}

#[test]
fn a_format_is_followed() {
    let server = Setup::default().start();
    let schema = json!({
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "integer"}, "maxItems": 3}, "b": {"enum": ["ab", "cd"]}},
        "required": ["a", "b"],
        "additionalProperties": false,
    });
    for seed in 0..5 {
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
        let body = json!({
            "messages": [{"role": "user", "content": "u"}],
            "response_format": format, "seed": seed, "temperature": 1.0, "max_completion_tokens": 900,
        });
        let json = server.post("/v1/chat/completions", &body).ok();
        let content = json["choices"][0]["message"]["content"].as_str().unwrap();
        if json["choices"][0]["finish_reason"] == "stop" {
            let made: Value =
                serde_json::from_str(content).unwrap_or_else(|error| panic!("{error}: {content}"));
            assert!(made["a"].is_array() && ["ab", "cd"].contains(&made["b"].as_str().unwrap()), "{made}");
            server.settle();
            return;
        }
    }
    panic!("no text ended");
}

#[test]
fn a_schema_that_cannot_be_followed_is_refused() {
    let server = Setup::default().start();
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}});
    let body = json!({"messages": [{"role": "user", "content": "u"}], "response_format": format});
    let why = server.post("/v1/chat/completions", &body).error(400, "invalid_value");
    assert!(why.starts_with("`response_format`"), "{why}");
}

#[test]
fn models_and_tokens_are_told() {
    let server = Setup::default().start();
    let json = server.get("/v1/models").ok();
    assert_eq!((&json["data"][0]["id"], &json["data"][0]["max_model_len"]), (&json!("tiny"), &json!(1024)));
    assert_eq!(server.get("/v1/models/tiny").ok()["id"], "tiny");
    server.get("/v1/models/other/name").error(404, "model_not_found");
    let tokens = server.post("/tokenize", &json!({"prompt": "aé"})).ok();
    assert_eq!((&tokens["tokens"], &tokens["count"]), (&json!([97, 195, 169]), &json!(3)));
    let chat = json!({"messages": [{"role": "user", "content": "u"}]});
    assert_eq!(server.post("/tokenize", &chat).ok()["count"], "user: u\nassistant: ".len());
    assert_eq!(server.post("/detokenize", &json!({"tokens": [97, 195, 169]})).ok()["prompt"], "aé");
    server.post("/detokenize", &json!({"tokens": [257]})).error(400, "invalid_value");
    assert_eq!(server.get("/health").ok()["status"], "ok");
}

#[test]
fn what_is_not_there_is_said_so() {
    let server = Setup::default().start();
    let why = server.get("/v2/completions").error(404, "not_found");
    assert_eq!(why, "there is no path /v2/completions");
    server.get("/v1/completions").error(405, "method_not_allowed");
    server.post("/v1/embeddings", &json!({"input": "a"})).error(404, "not_found");
    let why =
        server.post("/v1/completions", &json!({"model": "gpt", "prompt": "a"})).error(404, "model_not_found");
    assert_eq!(why, "there is no model `gpt`: this server has `tiny`");
    let why = server.post("/v1/completions", &json!({"prompt": [97, 300]})).error(400, "invalid_value");
    assert_eq!(why, "the prompt has the token 300: expected ids below 257");
    let why = server
        .post("/v1/completions", &json!({"prompt": "a".repeat(1024)}))
        .error(400, "context_length_exceeded");
    assert_eq!(why, "the prompt has 1024 tokens: expected at most 1023");
    server
        .post("/v1/completions", &json!({"prompt": "a", "logit_bias": {"257": 1}}))
        .error(400, "invalid_value");
}

#[test]
fn what_is_measured_is_told() {
    let server = Setup::default().start();
    let prompt = "the same long beginning of all prompts";
    for _ in 0..2 {
        server.post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 5})).ok();
    }
    server.get("/nothing");
    server.settle();
    let answer = server.get("/metrics");
    assert!(answer.headers["content-type"].starts_with("application/openmetrics-text"));
    let line = |name: &str| {
        let found = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {name} in {}", answer.body)).parse::<f64>().unwrap()
    };
    assert_eq!(line("keyfold_prompt_tokens_total"), 2.0 * prompt.len() as f64);
    assert_eq!(line("keyfold_cached_prompt_tokens_total"), 32.0);
    assert_eq!(line("keyfold_generated_tokens_total"), 10.0);
    assert_eq!(line("keyfold_time_to_first_token_seconds_count"), 2.0);
    assert_eq!(line("keyfold_time_per_output_token_seconds_count"), 2.0);
    assert_eq!(line("keyfold_cache_pages{state=\"used\"}"), 0.0);
    assert!(line("keyfold_cache_pages{state=\"idle\"}") > 0.0);
    assert_eq!(line("keyfold_http_requests_total{path=\"/v1/completions\",status=\"200\"}"), 2.0);
    assert_eq!(line("keyfold_http_requests_total{path=\"other\",status=\"404\"}"), 1.0);
    let stats = server.stats();
    assert_eq!(stats["tokens"]["cached"], 32);
    assert_eq!(stats["cache"]["mha_bytes_per_token"], 512);
}

#[test]
fn the_page_is_there_and_loads_nothing_from_elsewhere() {
    let server = Setup::default().start();
    let page = server.get("/");
    assert_eq!(page.status, 200);
    assert!(page.headers["content-type"].starts_with("text/html"));
    assert!(page.headers["content-security-policy"].starts_with("default-src 'none'"));
    let mut found = 0;
    for part in page.body.split(['"', '\'']).filter(|part| part.starts_with("/page/")) {
        assert_eq!(server.get(part).status, 200, "{part}");
        found += 1;
    }
    assert!(found >= 3);
    assert!(!page.body.contains("http://") && !page.body.contains("https://"));
}
