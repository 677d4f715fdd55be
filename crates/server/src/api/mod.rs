//! The paths that the server knows.

mod answer;
mod chat;
mod completions;
mod fields;
mod logprobs;
mod options;
mod request;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use answer::random;
pub use options::{Format, Options};
pub use request::{ChatRequest, CompletionRequest, Prompt, TokenizeRequest, parse_detokenize};

use crate::{
    config::ServerConfig,
    error::{ApiError, Kind},
    grammar::Follow,
    model::internal,
    page,
    service::Service,
};
use answer::json_response;
use axum::{
    Router,
    body::Bytes,
    extract::{FromRequest, Path, Request, State},
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http_body::Body as _;
use serde_json::{Value, json};
use std::{pin::Pin, sync::Arc};

/// What all handlers see.
pub(crate) struct App {
    pub(crate) service: Service,
    pub(crate) config: ServerConfig,
    created: u64,
}

/// Names a request in answers and logs.
#[derive(Clone, Debug)]
pub(crate) struct RequestName(pub(crate) Arc<str>);

impl App {
    pub(crate) fn new(service: Service, config: ServerConfig) -> Self {
        Self { service, config, created: answer::now() }
    }

    /// Where a text begins that is to follow `format`.
    fn follow(&self, format: &Format) -> Result<Option<Follow>, ApiError> {
        match format {
            Format::Text => Ok(None),
            Format::Schema(schema) => {
                self.service.model.grammars()?.schema("response_format", schema.clone()).map(Some)
            }
        }
    }

    /// Logs what was said, if that was asked for.
    fn log_text(&self, name: &RequestName, what: &str, text: impl FnOnce() -> String) {
        if self.config.log_texts {
            tracing::info!(request = %name.0, what, text = text());
        }
    }
}

pub(crate) fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/embeddings", post(embeddings))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/stats", get(stats))
        .route("/metrics", get(metrics));
    let guarded = crate::http::guard(guarded, &app);
    let open = page::routes(Router::new()).route("/health", get(health));
    let all = guarded.merge(open).fallback(no_path).method_not_allowed_fallback(no_method);
    crate::http::watch(all, &app).with_state(app)
}

/// A body that is said to be JSON, read within the limits.
struct Body(Bytes);

impl FromRequest<Arc<App>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let limits = app.service.limits();
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let json = kind.and_then(|kind| kind.split(';').next()).is_some_and(|kind| {
            // Pages of other sites can send other types without asking first.
            kind.trim().eq_ignore_ascii_case("application/json")
        });
        if !json {
            let found = kind.unwrap_or("none");
            let message = format!("Content-Type is {found}: expected application/json");
            return Err(ApiError::new(Kind::MediaType, message));
        }
        let too_large = || {
            let message = format!("the body is too large: expected at most {} bytes", limits.body_bytes);
            ApiError::new(Kind::TooLarge, message)
        };
        let mut body = request.into_body();
        if body.size_hint().lower() > limits.body_bytes as u64 {
            return Err(too_large());
        }
        let read = async {
            let mut bytes = Vec::new();
            while let Some(frame) =
                std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
            {
                let broken = |error| ApiError::new(Kind::Invalid, format!("the body broke off: {error}"));
                if let Ok(data) = frame.map_err(broken)?.into_data() {
                    if bytes.len() + data.len() > limits.body_bytes {
                        return Err(too_large());
                    }
                    bytes.extend_from_slice(&data);
                }
            }
            Ok(Self(bytes.into()))
        };
        tokio::time::timeout(limits.read_time, read)
            .await
            .map_err(|_| ApiError::new(Kind::SlowRequest, "the body took too long to come"))?
    }
}

/// Runs what takes a while beside the connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(internal)?
}

fn model_json(app: &App) -> Value {
    json!({
        "id": app.service.model.name,
        "object": "model",
        "created": app.created,
        "owned_by": "keyfold",
        "max_model_len": app.service.config.capacity(),
    })
}

async fn models(State(app): State<Arc<App>>) -> Response {
    json_response(&json!({"object": "list", "data": [model_json(&app)]}))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    if name == app.service.model.name {
        return Ok(json_response(&model_json(&app)));
    }
    let message = format!("there is no model `{name}`: this server has `{}`", app.service.model.name);
    Err(ApiError::new(Kind::NoModel, message))
}

async fn embeddings(State(app): State<Arc<App>>) -> ApiError {
    let message = format!("`{}` writes texts and makes no embeddings", app.service.model.name);
    ApiError::new(Kind::NotFound, message)
}

async fn tokenize(State(app): State<Arc<App>>, Body(body): Body) -> Result<Response, ApiError> {
    let asked = TokenizeRequest::parse(&body)?;
    let worker = app.clone();
    let tokens = blocking(move || {
        let model = &worker.service.model;
        match asked {
            TokenizeRequest::Text(text, true) => model.tokenizer.encode_sequence(&text).map_err(internal),
            TokenizeRequest::Text(text, false) => model.tokenizer.encode(&text).map_err(internal),
            TokenizeRequest::Messages(messages) => model.encode_chat(&messages),
        }
    })
    .await?;
    let longest = app.service.config.capacity();
    Ok(json_response(&json!({"tokens": tokens, "count": tokens.len(), "max_model_len": longest})))
}

async fn detokenize(State(app): State<Arc<App>>, Body(body): Body) -> Result<Response, ApiError> {
    let tokens = parse_detokenize(&body)?;
    let size = app.service.model.vocab_size;
    if let Some(token) = tokens.iter().find(|token| **token as usize >= size) {
        return Err(ApiError::invalid(
            "tokens",
            format_args!("there is no token {token}: expected ids below {size}"),
        ));
    }
    Ok(json_response(&json!({"prompt": app.service.model.tokenizer.decode(&tokens)})))
}

async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    if app.service.is_alive() {
        return Ok(json_response(&json!({"status": "ok", "model": app.service.model.name})));
    }
    Err(ApiError::new(Kind::Stopping, "the engine has ended"))
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.service.metrics().text()).into_response()
}

async fn stats(State(app): State<Arc<App>>) -> Response {
    let (service, stats) = (&app.service, app.service.stats());
    let config = service.config;
    json_response(&json!({
        "model": service.model.name,
        "chat": service.model.template.is_some(),
        "uptime_s": service.started.elapsed().as_secs_f64(),
        "max_model_len": config.capacity(),
        "cache": {
            "attention": service.model.cache.attention,
            "dtype": service.model.cache.dtype,
            "bytes_per_token": service.model.cache.bytes_per_token,
            "mha_bytes_per_token": service.model.cache.mha_bytes_per_token,
            "page_size": config.page_size,
            "pages": stats.pages,
            "pages_used": stats.pages_used,
            "pages_idle": stats.pages_idle,
        },
        "requests": {"running": stats.running, "waiting": stats.waiting, "preemptions": stats.preemptions},
        "tokens": {
            "prompt": stats.prompt_tokens,
            "cached": stats.cached_tokens,
            "computed": stats.computed_tokens,
            "made": stats.made_tokens,
            "guessed": stats.guessed_tokens,
            "guessed_right": stats.right_guesses,
        },
        "steps": stats.steps,
    }))
}

async fn no_path(request: Request) -> ApiError {
    ApiError::new(Kind::NotFound, format!("there is no path {}", request.uri().path()))
}

async fn no_method(request: Request) -> ApiError {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    ApiError::new(Kind::Method, message)
}
