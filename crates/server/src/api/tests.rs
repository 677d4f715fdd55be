use super::*;
use crate::config::Limits;
use serde_json::json;

fn completion(body: Value) -> Result<CompletionRequest, ApiError> {
    CompletionRequest::parse(body.to_string().as_bytes(), &Limits::default())
}

fn chat(body: Value) -> Result<ChatRequest, ApiError> {
    ChatRequest::parse(body.to_string().as_bytes(), &Limits::default())
}

fn said() -> Value {
    json!([{"role": "user", "content": "hi"}])
}

#[test]
fn prompts_come_in_four_forms() {
    let prompts = |prompt: Value| completion(json!({"prompt": prompt})).map(|request| request.prompts);
    let text = |text: &str| Prompt::Text(text.to_owned());
    assert_eq!(prompts(json!("a")), Ok(vec![text("a")]));
    assert_eq!(prompts(json!(["a", ""])), Ok(vec![text("a"), text("")]));
    assert_eq!(prompts(json!([1, 2])), Ok(vec![Prompt::Tokens(vec![1, 2])]));
    assert_eq!(prompts(json!([[1], [2, 3]])), Ok(vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]));
    for bad in [json!([]), json!(3), json!(null), json!([1, "a"]), json!([1.5]), json!([-1]), json!([[1], 2])]
    {
        let error = prompts(bad.clone()).expect_err("refused");
        assert_eq!(error.param.as_deref(), Some("prompt"), "{bad}");
    }
    assert_eq!(
        prompts(json!([4294967296u64])).expect_err("refused").message,
        "`prompt`: expected token ids, found 4294967296"
    );
}

#[test]
fn what_is_not_given_has_openais_default() {
    let request = completion(json!({"prompt": "a", "temperature": null})).expect("fine");
    assert_eq!((request.max_tokens, request.best_of, request.options.n), (16, 1, 1));
    assert!(!request.echo && !request.options.stream && request.logprobs.is_none());
    let request = chat(json!({"messages": said(), "max_tokens": 7})).expect("fine");
    assert_eq!(request.max_tokens, Some(7));
    let request =
        chat(json!({"messages": said(), "max_completion_tokens": 3, "max_tokens": 7})).expect("fine");
    assert_eq!(request.max_tokens, Some(3));
}

#[test]
fn wrong_values_are_named() {
    let cases = [
        (json!({"prompt": "a", "temperature": "hot"}), "temperature"),
        (json!({"prompt": "a", "temperature": 2.1}), "temperature"),
        (json!({"prompt": "a", "top_p": 0}), "top_p"),
        (json!({"prompt": "a", "repetition_penalty": 0}), "repetition_penalty"),
        (json!({"prompt": "a", "n": 0}), "n"),
        (json!({"prompt": "a", "n": 1e9}), "n"),
        (json!({"prompt": "a", "max_tokens": -1}), "max_tokens"),
        (json!({"prompt": "a", "max_tokens": 0}), "max_tokens"),
        (json!({"prompt": "a", "seed": 1.5}), "seed"),
        (json!({"prompt": "a", "stop": [1]}), "stop"),
        (json!({"prompt": "a", "stop": vec!["x"; 17]}), "stop"),
        (json!({"prompt": "a", "stop": "x".repeat(2000)}), "stop"),
        (json!({"prompt": "a", "stream": 1}), "stream"),
        (json!({"prompt": "a", "stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"prompt": "a", "stream": true, "stream_options": {"x": 1}}), "stream_options.x"),
        (json!({"prompt": "a", "logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"prompt": "a", "logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"prompt": "a", "logit_bias": [1]}), "logit_bias"),
        (json!({"prompt": "a", "logprobs": 21}), "logprobs"),
        (json!({"prompt": "a", "n": 2, "best_of": 1}), "best_of"),
        (json!({"prompt": "a", "stream": true, "best_of": 2}), "best_of"),
        (json!({"prompt": vec!["a"; 65], "n": 2}), "prompt"),
        (json!({"prompt": "a", "suffix": "b"}), "suffix"),
        (json!({"prompt": "a", "colour": "red"}), "colour"),
        (json!({"prompt": "a", "response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"prompt": "a", "response_format": {"type": "json_schema"}}), "response_format.json_schema"),
    ];
    for (body, param) in cases {
        let error = completion(body.clone()).expect_err(param);
        assert_eq!(error.param.as_deref(), Some(param), "{body}: {error}");
        assert!(error.message.contains(param), "{error}");
    }
    let error = completion(json!({"prompt": "a", "temperature": "hot"})).expect_err("refused");
    assert_eq!(error.message, "`temperature`: expected a number from 0 to 2, found \"hot\"");
    let error = completion(json!({"prompt": "a", "colour": "red"})).expect_err("refused");
    assert_eq!(error.message, "`colour`: this server knows no such field");
}

#[test]
fn conversations_are_read() {
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let messages = json!([
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "Ann"},
        {"role": "assistant", "content": "c", "refusal": null, "tool_calls": []},
    ]);
    let request =
        chat(json!({"messages": messages, "user": "x", "tools": [], "store": false})).expect("fine");
    let said: Vec<(&str, &str)> =
        request.messages.iter().map(|message| (message.role.as_str(), message.content.as_str())).collect();
    assert_eq!(said, [("system", "be brief"), ("user", "ab"), ("assistant", "c")]);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    let cases = [
        (json!({"messages": said(), "tools": [{"type": "function"}]}), "tools"),
        (json!({"messages": said(), "modalities": ["audio"]}), "modalities"),
        (json!({"messages": image}), "messages[0].content[0].type"),
    ];
    for (body, param) in cases {
        let error = chat(body).expect_err(param);
        assert_eq!((error.kind, error.param.as_deref()), (Kind::Unsupported, Some(param)));
    }
    let cases = [
        (json!({"messages": []}), "messages"),
        (json!({}), "messages"),
        (json!({"messages": [5]}), "messages[0]"),
        (json!({"messages": [{"role": "king", "content": "a"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": "a", "x": 1}]}), "messages[0].x"),
        (json!({"messages": said(), "top_logprobs": 2}), "top_logprobs"),
    ];
    for (body, param) in cases {
        assert_eq!(chat(body).expect_err(param).param.as_deref(), Some(param));
    }
}

#[test]
fn formats_are_read() {
    let format = |format: Value| chat(json!({"messages": said(), "response_format": format}));
    let schema = json!({"type": "object"});
    assert_eq!(format(json!({"type": "text"})).expect("fine").options.format, Format::Text);
    assert_eq!(
        format(json!({"type": "json_object"})).expect("fine").options.format,
        Format::Schema(schema.clone())
    );
    let named =
        json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    assert_eq!(format(named).expect("fine").options.format, Format::Schema(schema));
    let large = json!({"description": "x".repeat(70_000)});
    let error = format(json!({"type": "json_schema", "json_schema": {"schema": large}})).expect_err("large");
    assert_eq!(error.param.as_deref(), Some("response_format.json_schema.schema"));
}

#[test]
fn bodies_that_are_no_objects_are_refused() {
    let parse = |body: &[u8]| CompletionRequest::parse(body, &Limits::default()).expect_err("refused");
    assert!(parse(b"{\"prompt\": \"a\"").message.starts_with("the body is not JSON: "));
    assert!(parse(b"").message.starts_with("the body is not JSON: "));
    assert!(parse(b"{\"prompt\": \"\xff\"}").message.starts_with("the body is not UTF-8: "));
    assert_eq!(parse(b"[1]").message, "the body is a list of 1: expected an object");
    let deep = "[".repeat(100_000);
    assert!(parse(format!("{{\"prompt\": {deep}").as_bytes()).message.contains("recursion"));
}

#[test]
fn tokenizing_takes_a_text_or_a_conversation() {
    let parse = |body: Value| TokenizeRequest::parse(body.to_string().as_bytes());
    assert_eq!(parse(json!({"prompt": "a"})), Ok(TokenizeRequest::Text("a".to_owned(), true)));
    let plain = json!({"prompt": "a", "add_special_tokens": false, "model": "x"});
    assert_eq!(parse(plain), Ok(TokenizeRequest::Text("a".to_owned(), false)));
    assert!(matches!(parse(json!({"messages": said()})), Ok(TokenizeRequest::Messages(_))));
    assert!(parse(json!({"prompt": "a", "messages": said()})).is_err());
    assert!(parse(json!({})).is_err());
    assert_eq!(parse_detokenize(b"{\"tokens\": [1, 2]}"), Ok(vec![1, 2]));
    assert!(parse_detokenize(b"{\"tokens\": \"a\"}").is_err());
}
