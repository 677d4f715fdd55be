//! The page at `/`: files that are part of the program, and headers that let them load nothing from elsewhere.

use crate::api::App;
use axum::{Router, http::header, response::IntoResponse, routing::get};
use std::sync::Arc;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Adds the page's files.
pub(crate) fn routes(router: Router<Arc<App>>) -> Router<Arc<App>> {
    let files = [
        ("/", "text/html; charset=utf-8", include_str!("index.html")),
        ("/page/style.css", "text/css; charset=utf-8", include_str!("style.css")),
        ("/page/app.js", "text/javascript; charset=utf-8", include_str!("app.js")),
        ("/page/icon.svg", "image/svg+xml", include_str!("icon.svg")),
    ];
    files.into_iter().fold(router, |router, (path, kind, text)| {
        let headers = [
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        router.route(path, get(move || async move { (headers, text).into_response() }))
    })
}
