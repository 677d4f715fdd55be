#![no_main]

use keyfold_server::{
    Limits,
    api::{ChatRequest, CompletionRequest, TokenizeRequest, parse_detokenize},
};
use libfuzzer_sys::fuzz_target;

/// Bodies that use every field.
const VALID: [&str; 3] = [
    r#"{"model":"m","prompt":[[1,2],[3]],"max_tokens":5,"temperature":0.5,"top_p":0.9,"top_k":4,"min_p":0.1,"repetition_penalty":1.2,"n":2,"best_of":3,"seed":-7,"stop":["a","b"],"logprobs":3,"echo":true,"logit_bias":{"5":-1.5},"frequency_penalty":0.1,"presence_penalty":-0.1,"ignore_eos":false,"user":"u","suffix":null}"#,
    r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"t"}],"name":"n"}],"stream":true,"stream_options":{"include_usage":true},"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object"}}},"logprobs":true,"top_logprobs":2,"max_completion_tokens":9,"tools":[]}"#,
    r#"{"prompt":"text","add_special_tokens":false}"#,
];

fuzz_target!(|data: &[u8]| {
    let Some((choice, input)) = data.split_first() else { return };
    let valid = VALID[usize::from(*choice) % VALID.len()].as_bytes();
    let body = keyfold_fuzz::file(valid, input);
    let limits = Limits::default();
    if let Ok(request) = CompletionRequest::parse(&body, &limits) {
        assert!(!request.prompts.is_empty() && request.best_of >= request.options.n);
        assert!(request.prompts.len() * request.best_of <= limits.choices);
    }
    if let Ok(request) = ChatRequest::parse(&body, &limits) {
        assert!(!request.messages.is_empty() && request.options.n <= limits.choices);
    }
    let _ = TokenizeRequest::parse(&body);
    let _ = parse_detokenize(&body);
});
