//! What answers of both kinds have in common.

use super::{
    App, blocking,
    stream::{Chunks, respond},
};
use crate::{
    error::{ApiError, Kind},
    service::{Answers, Delta, Outcome},
};
use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use keyfold_engine::{End, Finish, Request};
use serde_json::{Value, json};
use std::{
    hash::{BuildHasher, Hasher},
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// What becomes of the texts of a request.
pub(super) trait Answer: Chunks {
    /// Names the request.
    fn id(&self) -> &str;
    /// Whether the texts are sent while they are made.
    fn streams(&self) -> bool;
    /// The answer in one piece.
    fn whole(self, whole: Vec<Delta>, app: &App) -> Result<Response, ApiError>;
}

/// Answers a request of `count` texts that `arrived` then, from what `prepare` makes of it.
pub(super) async fn answer<A: Answer>(
    app: Arc<App>,
    arrived: Instant,
    count: usize,
    prepare: impl FnOnce(&App) -> Result<(A, Vec<Request>), ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let room = app.service.room(count)?;
    let preparing = app.clone();
    let (answer, requests) = blocking(move || prepare(&preparing)).await?;
    let answers = app.service.submit(requests, room, answer.id(), arrived)?;
    if answer.streams() {
        return Ok(respond(answers, answer));
    }
    let whole = collect(&answers, count).await?;
    answer.whole(whole, &app)
}

/// Tokens that a request took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    prompt: usize,
    cached: usize,
    made: usize,
}

impl Usage {
    /// Adds a text's; a prompt counts once for all its texts.
    pub(super) fn add(&mut self, end: &End, first: bool) {
        self.made += end.made_tokens;
        if first {
            self.prompt += end.prompt_tokens;
            self.cached += end.cached_tokens;
        }
    }

    pub(super) fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.made,
            "total_tokens": self.prompt + self.made,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

/// How a text ended, in OpenAI's words.
pub(super) fn finish(outcome: &Outcome) -> Result<(&'static str, &End), ApiError> {
    match outcome {
        Outcome::End(end) => match &end.finish {
            Finish::Stop => Ok(("stop", end)),
            Finish::Length => Ok(("length", end)),
            Finish::Failed(why) => Err(ApiError::new(Kind::Internal, why.clone())),
        },
        Outcome::Timeout => Err(ApiError::new(Kind::Timeout, "the answer took longer than allowed")),
        Outcome::Stopped => Err(ApiError::new(Kind::Stopping, "the server ended before the answer")),
    }
}

/// Waits for all of `count` texts.
async fn collect(answers: &Answers, count: usize) -> Result<Vec<Delta>, ApiError> {
    let mut whole: Vec<Delta> = (0..count).map(|choice| Delta { choice, ..Delta::default() }).collect();
    while let Some(delta) = answers.next().await {
        if let Some(outcome) = &delta.outcome {
            finish(outcome)?;
        }
        let text = &mut whole[delta.choice];
        text.scores.extend(delta.scores);
        text.tokens.extend(delta.tokens);
        text.text += &delta.text;
        text.outcome = delta.outcome;
    }
    Ok(whole)
}

pub(super) fn json_response(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A number that nobody guesses by chance: the standard library seeds its hash maps with such.
pub(crate) fn random() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
