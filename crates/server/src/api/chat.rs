//! `/v1/chat/completions`.

use super::{
    App, Body, RequestName,
    answer::{Answer, Usage, answer, finish, json_response, now, random},
    logprobs,
    request::ChatRequest,
    stream::Chunks,
};
use crate::{error::ApiError, model::Model, service::Delta};
use axum::{Extension, extract::State, response::Response};
use keyfold_engine::Request;
use serde_json::{Value, json};
use std::{sync::Arc, time::Instant};

pub(super) async fn handle(
    State(app): State<Arc<App>>,
    Extension(name): Extension<RequestName>,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let asked = ChatRequest::parse(&body, app.service.limits())?;
    asked.options.check(&app.service.model)?;
    app.log_text(&name, "messages", || format!("{:?}", asked.messages));
    let count = asked.options.n;
    answer(app, arrived, count, move |app| prepare(app, &name.0, asked)).await
}

fn prepare(app: &App, name: &str, asked: ChatRequest) -> Result<(Chat, Vec<Request>), ApiError> {
    let model = app.service.model.clone();
    let prompt = model.encode_chat(&asked.messages)?;
    let seed = asked.options.seed.unwrap_or_else(random);
    let follow = app.follow(&asked.options.format)?;
    let request = |number: usize| Request {
        prompt: prompt.clone(),
        // The engine knows how much room there is.
        max_tokens: asked.max_tokens.unwrap_or(usize::MAX),
        ends: if asked.options.ignore_eos { Vec::new() } else { model.ends.clone() },
        stop: asked.options.stop.clone(),
        sampling: asked.options.sampling(&model, seed, number, asked.logprobs),
        score_prompt: false,
        constraint: follow.as_ref().map(|follow| Box::new(follow.clone()) as _),
        text: Some(model.detokenizer(true)),
    };
    let requests = (0..asked.options.n).map(request).collect();
    let chat = Chat { name: name.to_owned(), created: now(), model, asked, usage: Usage::default() };
    Ok((chat, requests))
}

struct Chat {
    name: String,
    created: u64,
    model: Arc<Model>,
    asked: ChatRequest,
    usage: Usage,
}

impl Chat {
    fn json(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": format!("chatcmpl-{}", self.name),
            "object": object,
            "created": self.created,
            "model": self.model.name,
            "choices": choices,
        })
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let mut json = self.json("chat.completion.chunk", choices);
        if self.asked.options.include_usage {
            json["usage"] = Value::Null;
        }
        json
    }

    /// Log-probabilities of a part's tokens, if wanted.
    fn logprobs(&self, delta: &Delta) -> Value {
        if self.asked.logprobs.is_none() {
            return Value::Null;
        }
        let each = delta.tokens.iter().filter_map(|token| {
            token.logprobs.as_ref().map(|logprobs| logprobs::object(&self.model, token.id, logprobs))
        });
        json!({"content": each.collect::<Vec<Value>>(), "refusal": null})
    }

    fn finish(&mut self, delta: &Delta) -> Result<Option<&'static str>, ApiError> {
        let Some(outcome) = &delta.outcome else { return Ok(None) };
        let (reason, end) = finish(outcome)?;
        self.usage.add(end, delta.choice == 0);
        Ok(Some(reason))
    }
}

impl Answer for Chat {
    fn id(&self) -> &str {
        &self.name
    }

    fn streams(&self) -> bool {
        self.asked.options.stream
    }

    fn whole(mut self, whole: Vec<Delta>, app: &App) -> Result<Response, ApiError> {
        let mut choices = Vec::new();
        for delta in whole {
            app.log_text(&RequestName(self.name.as_str().into()), "text", || delta.text.clone());
            let reason = self.finish(&delta)?;
            choices.push(json!({
                "index": delta.choice,
                "message": {"role": "assistant", "content": delta.text, "refusal": null},
                "logprobs": self.logprobs(&delta),
                "finish_reason": reason,
            }));
        }
        let mut json = self.json("chat.completion", choices);
        json["usage"] = self.usage.json();
        Ok(json_response(&json))
    }
}

impl Chunks for Chat {
    fn begin(&mut self) -> Vec<Value> {
        let choice = |index: usize| {
            let delta = json!({"role": "assistant", "content": ""});
            json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null})
        };
        (0..self.asked.options.n).map(|index| self.chunk(vec![choice(index)])).collect()
    }

    fn delta(&mut self, delta: Delta) -> Result<Vec<Value>, ApiError> {
        let reason = self.finish(&delta)?;
        let mut chunks = Vec::new();
        if !delta.text.is_empty() || !delta.tokens.is_empty() {
            chunks.push(self.chunk(vec![json!({
                "index": delta.choice,
                "delta": {"content": delta.text},
                "logprobs": self.logprobs(&delta),
                "finish_reason": null,
            })]));
        }
        if let Some(reason) = reason {
            chunks.push(self.chunk(vec![json!({
                "index": delta.choice,
                "delta": {},
                "logprobs": null,
                "finish_reason": reason,
            })]));
        }
        Ok(chunks)
    }

    fn end(&mut self) -> Vec<Value> {
        if !self.asked.options.include_usage {
            return Vec::new();
        }
        let mut json = self.json("chat.completion.chunk", Vec::new());
        json["usage"] = self.usage.json();
        vec![json]
    }
}
