//! `/v1/completions`.

use super::{
    App, Body, RequestName,
    answer::{Answer, Usage, answer, finish, json_response, now, random},
    logprobs::Lists,
    request::{CompletionRequest, Prompt},
    stream::Chunks,
};
use crate::{
    error::ApiError,
    model::Model,
    service::{Delta, Outcome},
};
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
    let asked = CompletionRequest::parse(&body, app.service.limits())?;
    asked.options.check(&app.service.model)?;
    app.log_text(&name, "prompt", || format!("{:?}", asked.prompts));
    let count = asked.prompts.len() * asked.best_of;
    answer(app, arrived, count, move |app| prepare(app, &name.0, asked)).await
}

fn prepare(app: &App, name: &str, asked: CompletionRequest) -> Result<(Completion, Vec<Request>), ApiError> {
    let model = app.service.model.clone();
    let seed = asked.options.seed.unwrap_or_else(random);
    let follow = app.follow(&asked.options.format)?;
    // Which texts are the best, their tokens' log-probabilities tell.
    let logprobs = asked.logprobs.or((asked.best_of > asked.options.n).then_some(0));
    let (mut texts, mut requests) = (Vec::new(), Vec::new());
    for prompt in &asked.prompts {
        let (tokens, text) = match prompt {
            Prompt::Text(text) => (model.encode(text)?, text.clone()),
            Prompt::Tokens(tokens) => (tokens.clone(), model.tokenizer.decode(tokens)),
        };
        for number in 0..asked.best_of {
            requests.push(Request {
                prompt: tokens.clone(),
                max_tokens: asked.max_tokens,
                ends: if asked.options.ignore_eos { Vec::new() } else { model.ends.clone() },
                stop: asked.options.stop.clone(),
                sampling: asked.options.sampling(&model, seed, number, logprobs),
                score_prompt: asked.echo && asked.logprobs.is_some(),
                constraint: follow.as_ref().map(|follow| Box::new(follow.clone()) as _),
                text: Some(model.detokenizer(false)),
            });
            let echo = asked.echo.then(|| (text.clone(), tokens.clone()));
            texts.push(Text { echo, scored: 0, offset: 0 });
        }
    }
    let completion =
        Completion { name: name.to_owned(), created: now(), model, asked, texts, usage: Usage::default() };
    Ok((completion, requests))
}

struct Completion {
    name: String,
    created: u64,
    model: Arc<Model>,
    asked: CompletionRequest,
    texts: Vec<Text>,
    usage: Usage,
}

/// What is kept of a text that is sent in parts.
struct Text {
    /// The prompt, until it was sent, with its tokens.
    echo: Option<(String, Vec<u32>)>,
    /// Tokens of the prompt that were sent with their log-probabilities.
    scored: usize,
    /// Characters sent.
    offset: usize,
}

impl Completion {
    fn json(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": format!("cmpl-{}", self.name),
            "object": "text_completion",
            "created": self.created,
            "model": self.model.name,
            "choices": choices,
        })
    }

    /// A text's part as OpenAI's object.
    fn choice(&mut self, delta: Delta) -> Result<Value, ApiError> {
        let Completion { model, asked, texts, usage, .. } = self;
        let state = &mut texts[delta.choice];
        let mut text = String::new();
        let mut lists = Lists::at(state.offset);
        if let Some((prompt, tokens)) = &mut state.echo {
            text += &std::mem::take(prompt);
            if asked.logprobs.is_some() {
                if state.scored == 0 {
                    lists.push(model, tokens[0], None);
                    state.scored = 1;
                }
                for score in &delta.scores {
                    lists.push(model, tokens[state.scored], Some(score));
                    state.scored += 1;
                }
            }
        }
        text += &delta.text;
        if asked.logprobs.is_some() {
            for token in &delta.tokens {
                lists.push(model, token.id, token.logprobs.as_ref());
            }
        }
        state.offset = lists.offset();
        let reason = match &delta.outcome {
            None => None,
            Some(outcome) => {
                let (reason, end) = finish(outcome)?;
                usage.add(end, delta.choice.is_multiple_of(asked.best_of));
                Some(reason)
            }
        };
        let n = asked.options.n;
        Ok(json!({
            "index": delta.choice / asked.best_of * n + delta.choice % asked.best_of,
            "text": text,
            "logprobs": if lists.is_empty() { Value::Null } else { lists.json() },
            "finish_reason": reason,
        }))
    }
}

impl Answer for Completion {
    fn id(&self) -> &str {
        &self.name
    }

    fn streams(&self) -> bool {
        self.asked.options.stream
    }

    /// Of each prompt's texts the `n` likeliest.
    fn whole(mut self, whole: Vec<Delta>, app: &App) -> Result<Response, ApiError> {
        let (n, best_of) = (self.asked.options.n, self.asked.best_of);
        let mut choices = Vec::new();
        let mut group: Vec<(f64, Value)> = Vec::new();
        for delta in whole {
            app.log_text(&RequestName(self.name.as_str().into()), "text", || delta.text.clone());
            let likely = likelihood(&delta);
            group.push((likely, self.choice(delta)?));
            if group.len() == best_of {
                if best_of > n {
                    group.sort_by(|a, b| b.0.total_cmp(&a.0));
                }
                for (_, mut choice) in group.drain(..).take(n) {
                    choice["index"] = json!(choices.len());
                    choices.push(choice);
                }
            }
        }
        let mut json = self.json(choices);
        json["usage"] = self.usage.json();
        Ok(json_response(&json))
    }
}

/// Mean log-probability of a text's tokens. How likely an end at once was is not known here: such a text comes last.
fn likelihood(delta: &Delta) -> f64 {
    if delta.tokens.is_empty() {
        return f64::NEG_INFINITY;
    }
    let each = delta.tokens.iter().filter_map(|token| token.logprobs.as_ref());
    let sum: f64 = each.map(|logprobs| f64::from(logprobs.token)).sum();
    sum / delta.tokens.len() as f64
}

impl Chunks for Completion {
    fn begin(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn delta(&mut self, delta: Delta) -> Result<Vec<Value>, ApiError> {
        let ended = matches!(delta.outcome, Some(Outcome::End(_)));
        let choice = self.choice(delta)?;
        if choice["text"] == "" && choice["logprobs"].is_null() && !ended {
            return Ok(Vec::new());
        }
        let mut json = self.json(vec![choice]);
        if self.asked.options.include_usage {
            json["usage"] = Value::Null;
        }
        Ok(vec![json])
    }

    fn end(&mut self) -> Vec<Value> {
        if !self.asked.options.include_usage {
            return Vec::new();
        }
        let mut json = self.json(Vec::new());
        json["usage"] = self.usage.json();
        vec![json]
    }
}
