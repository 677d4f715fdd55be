//! A server with a fake model, and a client that knows no more of HTTP than it must.

use keyfold_data::{ChatTemplate, Tokenizer};
use keyfold_engine::{EngineConfig, Lookup, Sampling, fake::Fake};
use keyfold_server::{CacheFacts, Limits, Model, Server, ServerConfig, Service};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread::JoinHandle,
    time::Duration,
};
use tokio::sync::oneshot;

pub(crate) const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

/// Ids that the fake model writes: what JSON is made of, and some more.
pub(crate) fn alphabet() -> Vec<u32> {
    b"abcdefgh {}\":,[]0123".iter().map(|byte| u32::from(*byte)).collect()
}

/// The text that the fake model makes of a prompt.
pub(crate) fn text(prompt: &str, sampling: &Sampling, count: usize) -> String {
    let prompt: Vec<u32> = prompt.bytes().map(u32::from).collect();
    Fake::text(&alphabet(), &prompt, sampling, count).iter().map(|id| char::from(*id as u8)).collect()
}

pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) engine: EngineConfig,
    pub(crate) keys: Vec<String>,
    pub(crate) delay: Duration,
    pub(crate) broken: Option<u32>,
    pub(crate) template: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits { grace: Duration::from_secs(5), ..Limits::default() },
            engine: EngineConfig {
                pages: 256,
                page_size: 8,
                max_len: 1024,
                vocab_size: 257,
                max_batch_tokens: 256,
                max_running: 16,
                max_logits: 64,
                prefix_cache: true,
                lookup: Some(Lookup::default()),
            },
            keys: Vec::new(),
            delay: Duration::ZERO,
            broken: None,
            template: true,
        }
    }
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Setup {
    pub(crate) fn start(self) -> Running {
        let mut model = Model::new("tiny".to_owned(), Tokenizer::bytes(), 257, vec![256]);
        if self.template {
            model.template = Some(ChatTemplate::new(TEMPLATE, BTreeMap::new(), "test").unwrap());
        }
        model.cache = CacheFacts { bytes_per_token: 64, mha_bytes_per_token: 512, ..CacheFacts::default() };
        let mut fake = Fake::new(self.engine.pages, self.engine.page_size, alphabet());
        (fake.delay, fake.broken) = (self.delay, self.broken);
        let service = Service::start(model, self.engine, &self.limits, || fake).unwrap();
        let config = ServerConfig { limits: self.limits, api_keys: self.keys, log_texts: false };
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.unwrap().block_on(async {
                let server = Server::bind(service, config, "127.0.0.1", 0).await.unwrap();
                tell.send(server.address().unwrap()).unwrap();
                server.run(async { drop(stopped.await) }).await;
            });
        });
        Running { address: told.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }
}

impl Running {
    /// Asks the server to end; it may take a while.
    pub(crate) fn ask_to_stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until it has ended.
    pub(crate) fn join(&mut self) {
        self.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Sends bytes as they are and reads the answer to its end.
    pub(crate) fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        // The server may have answered and closed before it read everything.
        let _ = stream.write_all(request);
        Answer::read(stream)
    }

    pub(crate) fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        self.raw(&message(method, path, headers, body))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "", b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, "Content-Type: application/json\r\n", body.to_string().as_bytes())
    }

    /// Sends a request and leaves the connection to the caller.
    pub(crate) fn open(&self, path: &str, body: &Value) -> TcpStream {
        let mut stream = self.connect();
        let headers = "Content-Type: application/json\r\n";
        stream.write_all(&message("POST", path, headers, body.to_string().as_bytes())).unwrap();
        stream
    }

    pub(crate) fn stats(&self) -> Value {
        self.get("/stats").json()
    }

    /// Waits until the server has nothing to do, and checks that it lost no page.
    pub(crate) fn settle(&self) {
        for _ in 0..1000 {
            let stats = self.stats();
            if stats["requests"]["running"] == 0 && stats["requests"]["waiting"] == 0 {
                assert_eq!(stats["cache"]["pages_used"], 0, "{stats}");
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("still busy: {}", self.stats());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.join();
        }
    }
}

fn message(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        // A reset after the answer is as good as its end.
        let mut part = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut part) {
            bytes.extend_from_slice(&part[..count]);
        }
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { panic!("no answer: {text:?}") };
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(key, value)| (key.to_lowercase(), value.to_owned()))
            .collect();
        let chunked = headers.get("transfer-encoding").is_some_and(|kind| kind == "chunked");
        let body = if chunked { dechunk(body) } else { body.to_owned() };
        Self { status, headers, body }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The JSON of an answer that must be fine.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    /// Checks an error's status and code, and gives its message.
    pub(crate) fn error(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        let json = self.json();
        assert_eq!(json["error"]["code"], code, "{json}");
        assert!(json["error"]["type"].is_string() && json["error"].get("param").is_some(), "{json}");
        json["error"]["message"].as_str().unwrap().to_owned()
    }

    /// The events of a stream, which must end as it should.
    pub(crate) fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.body);
        assert!(self.headers["content-type"].starts_with("text/event-stream"));
        let mut events: Vec<&str> = self.body.split("\n\n").filter(|event| !event.is_empty()).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{}", self.body);
        events
            .iter()
            .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
            .collect()
    }
}

fn dechunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        let Some(part) = rest.get(..size) else {
            // It broke off.
            whole += rest;
            break;
        };
        whole += part;
        body = rest.get(size + 2..).unwrap_or_default();
        if size == 0 {
            break;
        }
    }
    whole
}
