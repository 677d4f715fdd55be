//! What a server allows.

use std::time::Duration;

/// What a server takes from one client or from all; on by default.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Time to send a request's head, or its body.
    pub read_time: Duration,
    /// Time that a client may take none of what is sent to it.
    pub write_time: Duration,
    /// Time from a request to the end of its answer.
    pub request_time: Duration,
    /// Texts that wait for the engine, beyond those it works on.
    pub queue: usize,
    /// Texts that one request may ask for: prompts times `n` or `best_of`.
    pub choices: usize,
    /// Connections at a time; more wait to be accepted.
    pub connections: usize,
    /// Stop strings of a request.
    pub stop_strings: usize,
    /// Likeliest tokens that may be asked for.
    pub top_logprobs: usize,
    /// Bytes of a JSON schema.
    pub schema_bytes: usize,
    /// Time that answers have to end after the server was told to stop.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            read_time: Duration::from_secs(30),
            write_time: Duration::from_secs(30),
            request_time: Duration::from_secs(600),
            queue: 256,
            choices: 128,
            connections: 1024,
            stop_strings: 16,
            top_logprobs: 20,
            schema_bytes: 64 << 10,
            grace: Duration::from_secs(30),
        }
    }
}

/// How a server behaves.
#[derive(Clone, Debug, Default)]
pub struct ServerConfig {
    /// What it allows.
    pub limits: Limits,
    /// Keys of which a client must know one; without any, everyone may come.
    pub api_keys: Vec<String>,
    /// Whether prompts and texts are logged.
    pub log_texts: bool,
}
