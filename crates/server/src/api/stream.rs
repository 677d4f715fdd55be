//! Answers as server-sent events, while they are made.

use crate::{
    error::ApiError,
    service::{Answers, Delta},
};
use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use http_body::Frame;
use serde_json::Value;
use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

/// What becomes of what the engine brings.
pub(super) trait Chunks: Send + 'static {
    /// Before anything came.
    fn begin(&mut self) -> Vec<Value>;
    /// For what came.
    fn delta(&mut self, delta: Delta) -> Result<Vec<Value>, ApiError>;
    /// After all.
    fn end(&mut self) -> Vec<Value>;
}

/// The answer that sends `chunks` of what comes.
pub(super) fn respond(answers: Answers, mut chunks: impl Chunks) -> Response {
    let waiting = chunks.begin().iter().map(event).collect();
    let events = Events { answers, chunks: Box::new(chunks), waiting, ended: false };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // Proxies are not to collect what is to be seen at once.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::new(events)).into_response()
}

struct Events {
    answers: Answers,
    chunks: Box<dyn Chunks>,
    waiting: VecDeque<Bytes>,
    ended: bool,
}

fn event(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(bytes) = self.waiting.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let Poll::Ready(delta) = self.answers.poll(context) else { return Poll::Pending };
            let sent = match delta {
                Some(delta) => self.chunks.delta(delta),
                None => {
                    self.ended = true;
                    Ok(self.chunks.end())
                }
            };
            match sent {
                Ok(values) => self.waiting.extend(values.iter().map(event)),
                Err(error) => {
                    self.ended = true;
                    self.waiting.push_back(event(&error.json()));
                    continue;
                }
            }
            if self.ended {
                self.waiting.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
            }
        }
    }
}
