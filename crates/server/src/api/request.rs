//! The requests that this server understands, read from their bodies and checked as far as no model is needed.

use super::{
    fields::{Fields, wrong},
    options::Options,
};
use crate::{
    config::Limits,
    error::{ApiError, Kind},
};
use keyfold_data::Message;
use serde_json::{Value, json};

/// `/v1/completions`.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// What the texts are to be like.
    pub options: Options,
    /// What to go on from.
    pub prompts: Vec<Prompt>,
    /// Tokens of each text at most.
    pub max_tokens: usize,
    /// Whether the texts begin with their prompts.
    pub echo: bool,
    /// Tell the log-probabilities of tokens, and of so many of the likeliest.
    pub logprobs: Option<usize>,
    /// Make so many texts and give the `n` likeliest.
    pub best_of: usize,
}

/// What to go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// `/v1/chat/completions`.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// What the answers are to be like.
    pub options: Options,
    /// What was said.
    pub messages: Vec<Message>,
    /// Tokens of an answer at most; as many as there is room for without it.
    pub max_tokens: Option<usize>,
    /// Tell the log-probabilities of tokens, and of so many of the likeliest.
    pub logprobs: Option<usize>,
}

/// `/tokenize`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizeRequest {
    /// A text, and whether with the tokens that begin a sequence.
    Text(String, bool),
    /// A conversation.
    Messages(Vec<Message>),
}

/// Tokens of a text where a completion does not say.
const DEFAULT_TOKENS: usize = 16;

impl CompletionRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// Names the first field that is wrong or not supported.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::read(body)?;
        fields.refuse("suffix", &[json!("")], "filling a gap is not supported")?;
        let options = Options::take(&mut fields, limits)?;
        let prompts = prompts(fields.take("prompt"))?;
        let best_of = fields.count("best_of", 1..=limits.choices)?.unwrap_or(options.n);
        let request = Self {
            max_tokens: fields.count("max_tokens", 0..=usize::MAX)?.unwrap_or(DEFAULT_TOKENS),
            echo: fields.flag("echo")?,
            logprobs: fields.count("logprobs", 0..=limits.top_logprobs)?,
            best_of,
            prompts,
            options,
        };
        fields.finish()?;
        let (n, stream) = (request.options.n, request.options.stream);
        if best_of < n {
            let message = format!("expected at least `n` = {n}, found {best_of}");
            return Err(ApiError::invalid("best_of", message));
        }
        if best_of > n && stream {
            let message = "which texts are the best is known at their end only: not with `stream`";
            return Err(ApiError::about(Kind::Unsupported, "best_of", message));
        }
        let choices = request.prompts.len().saturating_mul(best_of);
        if choices > limits.choices {
            let message = format!("expected at most {} texts in all, found {choices}", limits.choices);
            return Err(ApiError::invalid("prompt", message));
        }
        if request.max_tokens == 0 && !request.echo {
            return Err(ApiError::invalid("max_tokens", "expected at least 1 without `echo`, found 0"));
        }
        Ok(request)
    }
}

impl ChatRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// Names the first field that is wrong or not supported.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::read(body)?;
        let tools = "calling tools is not supported";
        fields.refuse("tools", &[json!([])], tools)?;
        fields.refuse("tool_choice", &[json!("none"), json!("auto")], tools)?;
        fields.refuse("functions", &[json!([])], tools)?;
        fields.refuse("function_call", &[json!("none"), json!("auto")], tools)?;
        fields.refuse("modalities", &[json!(["text"])], "only text is supported")?;
        fields.refuse("audio", &[], "only text is supported")?;
        fields.refuse("prediction", &[], "predicted outputs are not supported")?;
        fields.refuse("web_search_options", &[], "searching the web is not supported")?;
        fields.refuse("reasoning_effort", &[json!("none")], "the effort of reasoning cannot be set")?;
        fields.refuse("verbosity", &[json!("medium")], "verbosity cannot be set")?;
        // It says how tools are called.
        fields.ignore(&["parallel_tool_calls"]);
        let options = Options::take(&mut fields, limits)?;
        let messages = messages(fields.take("messages"))?;
        let (old, new) = ("max_tokens", "max_completion_tokens");
        let max_tokens = fields.count(new, 1..=usize::MAX)?.or(fields.count(old, 1..=usize::MAX)?);
        let wanted = fields.flag("logprobs")?;
        let top = fields.count("top_logprobs", 0..=limits.top_logprobs)?;
        fields.finish()?;
        if top.is_some() && !wanted {
            return Err(ApiError::invalid("top_logprobs", "expected only with `logprobs`: true"));
        }
        let logprobs = wanted.then_some(top.unwrap_or(0));
        Ok(Self { options, messages, max_tokens, logprobs })
    }
}

impl TokenizeRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// Names the first field that is wrong or not supported.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::read(body)?;
        fields.ignore(&["model"]);
        let said = fields.take("messages");
        let text = fields.text("prompt")?;
        let whole = fields.take("add_special_tokens");
        fields.finish()?;
        let whole = match whole {
            None => true,
            Some(Value::Bool(flag)) => flag,
            Some(other) => return Err(wrong("add_special_tokens", "true or false", &other)),
        };
        match (text, said) {
            (Some(text), None) => Ok(Self::Text(text, whole)),
            (None, Some(said)) => Ok(Self::Messages(messages(Some(said))?)),
            _ => Err(ApiError::invalid("prompt", "expected either `prompt` or `messages`")),
        }
    }
}

/// Reads the body of `/detokenize`.
///
/// # Errors
/// Names the first field that is wrong or not supported.
pub fn parse_detokenize(body: &[u8]) -> Result<Vec<u32>, ApiError> {
    let mut fields = Fields::read(body)?;
    fields.ignore(&["model"]);
    let tokens = fields.take("tokens");
    fields.finish()?;
    match tokens {
        Some(Value::Array(list)) => ids("tokens", &list),
        other => Err(wrong("tokens", "a list of token ids", &other.unwrap_or(Value::Null))),
    }
}

fn ids(place: &str, list: &[Value]) -> Result<Vec<u32>, ApiError> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    list.iter().map(|value| id(value).ok_or_else(|| wrong(place, "token ids", value))).collect()
}

/// A text, a list of texts, a list of ids, or a list of lists of ids.
fn prompts(value: Option<Value>) -> Result<Vec<Prompt>, ApiError> {
    let expected = "a string, a list of strings, a list of token ids or a list of such lists";
    match value {
        Some(Value::String(text)) => Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(list)) => match list.first() {
            Some(Value::Number(_)) => Ok(vec![Prompt::Tokens(ids("prompt", &list)?)]),
            Some(_) => list
                .into_iter()
                .map(|value| match value {
                    Value::String(text) => Ok(Prompt::Text(text)),
                    Value::Array(list) => Ok(Prompt::Tokens(ids("prompt", &list)?)),
                    other => Err(wrong("prompt", expected, &other)),
                })
                .collect(),
            None => Err(wrong("prompt", expected, &Value::Array(list))),
        },
        other => Err(wrong("prompt", expected, &other.unwrap_or(Value::Null))),
    }
}

fn messages(value: Option<Value>) -> Result<Vec<Message>, ApiError> {
    match value {
        Some(Value::Array(list)) if !list.is_empty() => list
            .into_iter()
            .enumerate()
            .map(|(at, value)| message(&format!("messages[{at}]"), value))
            .collect(),
        other => Err(wrong("messages", "a list of messages", &other.unwrap_or(Value::Null))),
    }
}

fn message(place: &str, value: Value) -> Result<Message, ApiError> {
    let mut fields = Fields::of(place, value)?;
    let role = fields.text("role")?;
    let role = match role.as_deref() {
        Some(role @ ("system" | "user" | "assistant")) => role,
        // The newer name of what the system says.
        Some("developer") => "system",
        other => {
            let found = other.map_or(Value::Null, Value::from);
            return Err(wrong(&fields.path("role"), "system, user, assistant or developer", &found));
        }
    };
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(list)) => {
            let place = fields.path("content");
            let parts = list.into_iter().enumerate();
            parts.map(|(at, value)| part(&format!("{place}[{at}]"), value)).collect::<Result<String, _>>()?
        }
        other => {
            let expected = "a string or a list of parts";
            return Err(wrong(&fields.path("content"), expected, &other.unwrap_or(Value::Null)));
        }
    };
    // Clients send answers back as they got them.
    fields.ignore(&["name", "refusal", "annotations"]);
    let tools = "calling tools is not supported";
    fields.refuse("tool_calls", &[json!([])], tools)?;
    fields.refuse("function_call", &[], tools)?;
    fields.refuse("audio", &[], "only text is supported")?;
    fields.finish()?;
    Ok(Message::new(role, content))
}

fn part(place: &str, value: Value) -> Result<String, ApiError> {
    let mut fields = Fields::of(place, value)?;
    match fields.text("type")?.as_deref() {
        Some("text") => {
            let text = fields.text("text")?;
            fields.finish()?;
            text.ok_or_else(|| wrong(&format!("{place}.text"), "a string", &Value::Null))
        }
        other => {
            let found = other.map_or(Value::Null, Value::from);
            let message = format!("only parts of type text are supported, found {found}");
            Err(ApiError::about(Kind::Unsupported, &format!("{place}.type"), message))
        }
    }
}
