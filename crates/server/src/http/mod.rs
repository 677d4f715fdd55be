//! Connections, keys, names of requests.

mod listen;
mod patience;

pub use listen::{ServeError, Server};

use crate::{
    api::{App, RequestName, random},
    error::{ApiError, Kind},
};
use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Instant};
use subtle::{Choice, ConstantTimeEq};

/// The keys in a text, one a line; lines that are empty or begin with # are none.
pub fn keys_from(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// Lets only those in who know a key, if there are keys.
pub(crate) fn guard(router: Router<Arc<App>>, app: &Arc<App>) -> Router<Arc<App>> {
    let keys: Arc<[[u8; 32]]> = app.config.api_keys.iter().map(|key| digest(key.as_bytes())).collect();
    if keys.is_empty() {
        return router;
    }
    router.route_layer(middleware::from_fn_with_state(keys, check_key))
}

fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

async fn check_key(State(keys): State<Arc<[[u8; 32]]>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let given = given.and_then(|value| {
        let (scheme, key) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii())
    });
    let Some(given) = given else {
        let error = ApiError::new(Kind::Unauthorized, "expected the header Authorization: Bearer KEY");
        return error.into_response();
    };
    // Digests are of equal length, and all are compared: the time tells nothing of any key.
    let given = digest(given);
    let known = keys.iter().fold(Choice::from(0), |known, key| known | key.ct_eq(&given));
    if !bool::from(known) {
        return ApiError::new(Kind::Unauthorized, "the key is not known").into_response();
    }
    next.run(request).await
}

const NAME: &str = "x-request-id";

/// Names each request, counts it and logs how it was answered.
pub(crate) fn watch(router: Router<Arc<App>>, app: &Arc<App>) -> Router<Arc<App>> {
    router.layer(middleware::from_fn_with_state(app.clone(), name_and_log))
}

async fn name_and_log(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let given = request.headers().get(NAME).and_then(|name| name.to_str().ok()).filter(|name| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        (1..=64).contains(&name.len()) && name.bytes().all(plain)
    });
    let name: Arc<str> = given.map_or_else(|| format!("{:016x}", random()).into(), Into::into);
    request.extensions_mut().insert(RequestName(name.clone()));
    let method = request.method().clone();
    // Paths as they are declared: what clients invent is not worth a row of its own.
    let path = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&name) {
        response.headers_mut().insert(NAME, value);
    }
    let status = response.status().as_u16();
    app.service.metrics().answered(&path, status);
    let ms = began.elapsed().as_millis() as u64;
    // Pages and scrapers look at the server all the time.
    if method == axum::http::Method::GET && status < 400 {
        tracing::debug!(request = %name, %method, path, status, ms, "answered");
    } else {
        tracing::info!(request = %name, %method, path, status, ms, "answered");
    }
    response
}
