//! Errors in OpenAI's form, from one table.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use std::fmt;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident = $status:ident, $type:literal, $code:literal;)+) => {
        /// What is wrong, each with its status, OpenAI's type and a code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $($(#[doc = $doc])+ $kind),+ }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            /// The status of the answer.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$kind => StatusCode::$status),+ }
            }

            /// What OpenAI calls such errors.
            pub fn type_name(self) -> &'static str {
                match self { $(Self::$kind => $type),+ }
            }

            /// Names the kind to programs.
            pub fn code(self) -> &'static str {
                match self { $(Self::$kind => $code),+ }
            }
        }
    };
}

kinds! {
    /// The request is no JSON, or a value is not what it may be.
    Invalid = BAD_REQUEST, "invalid_request_error", "invalid_value";
    /// The request asks for what this server does not do.
    Unsupported = BAD_REQUEST, "invalid_request_error", "unsupported_parameter";
    /// The prompt is longer than the model or the cache allows.
    TooLong = BAD_REQUEST, "invalid_request_error", "context_length_exceeded";
    /// No key, or a wrong one.
    Unauthorized = UNAUTHORIZED, "invalid_request_error", "invalid_api_key";
    /// There is no such path.
    NotFound = NOT_FOUND, "invalid_request_error", "not_found";
    /// There is no such model here.
    NoModel = NOT_FOUND, "invalid_request_error", "model_not_found";
    /// The path does not take this method.
    Method = METHOD_NOT_ALLOWED, "invalid_request_error", "method_not_allowed";
    /// The client took too long to send its request.
    SlowRequest = REQUEST_TIMEOUT, "invalid_request_error", "request_timeout";
    /// The body is larger than allowed.
    TooLarge = PAYLOAD_TOO_LARGE, "invalid_request_error", "body_too_large";
    /// The body is not said to be JSON.
    MediaType = UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", "unsupported_media_type";
    /// More requests wait than allowed.
    Overloaded = TOO_MANY_REQUESTS, "rate_limit_error", "queue_full";
    /// The server failed.
    Internal = INTERNAL_SERVER_ERROR, "server_error", "internal_error";
    /// The server is about to end.
    Stopping = SERVICE_UNAVAILABLE, "server_error", "stopping";
    /// The answer took longer than allowed.
    Timeout = GATEWAY_TIMEOUT, "server_error", "timeout";
}

/// An error for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// What is wrong.
    pub kind: Kind,
    /// What is wrong with what, what was expected and what came.
    pub message: String,
    /// The parameter that is wrong.
    pub param: Option<String>,
    /// Seconds after which it may be tried again.
    pub retry_after: Option<u64>,
}

impl ApiError {
    /// An error without a parameter.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None, retry_after: None }
    }

    /// A value that is not what it may be.
    pub fn invalid(param: &str, message: impl fmt::Display) -> Self {
        Self::about(Kind::Invalid, param, message)
    }

    /// An error of a parameter.
    pub fn about(kind: Kind, param: &str, message: impl fmt::Display) -> Self {
        let message = format!("`{param}`: {message}");
        Self { kind, message, param: Some(param.to_owned()), retry_after: None }
    }

    /// OpenAI's form.
    pub fn json(&self) -> serde_json::Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind.type_name(),
            "param": self.param,
            "code": self.kind.code(),
        }})
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let mut response = (self.kind.status(), headers, self.json().to_string()).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.kind == Kind::Unauthorized {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_differ_by_code() {
        let mut codes: Vec<&str> = Kind::ALL.iter().map(|kind| kind.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            let server = kind.type_name() == "server_error";
            assert_eq!(kind.status().is_server_error(), server, "{kind:?}");
        }
    }

    #[test]
    fn errors_have_openais_form() {
        let error = ApiError::invalid("temperature", "expected a number from 0 to 2, found \"x\"");
        let json = error.json();
        assert_eq!(json["error"]["param"], "temperature");
        assert_eq!(json["error"]["type"], "invalid_request_error");
        assert_eq!(json["error"]["code"], "invalid_value");
        assert_eq!(json["error"]["message"], "`temperature`: expected a number from 0 to 2, found \"x\"");
    }
}
