//! A client of a streaming completion: no more of HTTP than that takes, so that it costs next to nothing.

use anyhow::{Context, bail};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

/// A server that says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(120);

/// Where a server listens.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// HOST:PORT.
    address: String,
    key: Option<String>,
}

/// What a request took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// From the request to the first text.
    pub(super) first: Duration,
    /// From the request to the end.
    pub(super) whole: Duration,
    pub(super) prompt_tokens: usize,
    pub(super) made_tokens: usize,
}

impl Sample {
    /// Mean time between tokens.
    pub(super) fn each(&self) -> Option<Duration> {
        let rest = u32::try_from(self.made_tokens.checked_sub(1)?).ok().filter(|rest| *rest > 0)?;
        Some((self.whole - self.first) / rest)
    }
}

impl Target {
    /// A server's address: http://HOST:PORT.
    pub(super) fn new(url: &str, key: Option<String>) -> anyhow::Result<Self> {
        let address = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        let address = address.filter(|address| address.contains(':') && !address.contains('/'));
        let address = address.with_context(|| format!("--url is {url}: expected http://HOST:PORT"))?;
        Ok(Self { address: address.to_owned(), key })
    }

    /// Asks for a streamed completion and reads it to its end.
    pub(super) fn complete(&self, body: &Value) -> anyhow::Result<Sample> {
        let body = body.to_string();
        let began = Instant::now();
        let mut stream = TcpStream::connect(&self.address).with_context(|| self.address.clone())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        let key = self.key.as_ref().map_or(String::new(), |key| format!("Authorization: Bearer {key}\r\n"));
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{key}Connection: close\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
        let mut reader = BufReader::new(stream);
        let (status, chunked) = read_head(&mut reader)?;
        if status != 200 {
            let mut text = String::new();
            reader.take(10_000).read_to_string(&mut text)?;
            bail!("the server answered {status}: {text}");
        }
        if chunked {
            read_events(BufReader::new(Chunks { inner: reader, left: 0, ended: false }), began)
        } else {
            read_events(reader, began)
        }
    }
}

/// The status, and whether the body comes in chunks.
fn read_head(reader: &mut impl BufRead) -> anyhow::Result<(u16, bool)> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("expected an HTTP answer, found {line:?}"))?;
    let mut chunked = false;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok((status, chunked));
        }
        let lower = line.to_ascii_lowercase();
        chunked |= lower.starts_with("transfer-encoding:") && lower.contains("chunked");
    }
}

fn read_events(reader: impl BufRead, began: Instant) -> anyhow::Result<Sample> {
    let mut first = None;
    let (mut events, mut usage) = (0, None);
    for line in reader.lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            break;
        }
        let event: Value = serde_json::from_str(data).context("an event")?;
        if let Some(error) = event.get("error") {
            bail!("the stream broke off: {error}");
        }
        if event["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()) {
            first.get_or_insert_with(|| began.elapsed());
            events += 1;
        }
        if event["usage"].is_object() {
            usage = Some(event["usage"].clone());
        }
    }
    let whole = began.elapsed();
    let count = |key: &str| usage.as_ref().and_then(|usage| usage[key].as_u64()).map(|count| count as usize);
    Ok(Sample {
        first: first.unwrap_or(whole),
        whole,
        prompt_tokens: count("prompt_tokens").unwrap_or(0),
        made_tokens: count("completion_tokens").unwrap_or(events),
    })
}

/// A body that comes in chunks.
struct Chunks<R> {
    inner: R,
    left: usize,
    ended: bool,
}

impl<R: BufRead> Read for Chunks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let broken = || std::io::Error::from(std::io::ErrorKind::InvalidData);
        if self.left == 0 && !self.ended {
            let mut line = String::new();
            self.inner.read_line(&mut line)?;
            if line == "\r\n" {
                line.clear();
                self.inner.read_line(&mut line)?;
            }
            let size = line.trim().split(';').next().unwrap_or_default();
            self.left = usize::from_str_radix(size, 16).map_err(|_| broken())?;
            self.ended = self.left == 0;
        }
        let most = buffer.len().min(self.left);
        let count = self.inner.read(&mut buffer[..most])?;
        self.left -= count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_in_chunks_are_read() {
        let event = |text: &str| format!("data: {{\"choices\":[{{\"text\":\"{text}\"}}]}}\n\n");
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":5}}\n\n";
        let body = event("a") + &event("") + &event("b") + usage + "data: [DONE]\n\n";
        let mut chunks = String::new();
        for part in body.as_bytes().chunks(7) {
            chunks += &format!("{:x}\r\n{}\r\n", part.len(), String::from_utf8_lossy(part));
        }
        chunks += "0\r\n\r\n";
        let reader = BufReader::new(Chunks { inner: chunks.as_bytes(), left: 0, ended: false });
        let sample = read_events(reader, Instant::now()).unwrap();
        assert_eq!((sample.prompt_tokens, sample.made_tokens), (3, 5));
        assert!(sample.each().is_some());
        let error = read_events("data: {\"error\":{\"message\":\"x\"}}\n\n".as_bytes(), Instant::now());
        assert!(error.is_err());
    }

    #[test]
    fn addresses_are_checked() {
        assert!(Target::new("http://127.0.0.1:8080/", None).is_ok());
        for bad in ["127.0.0.1:8080", "https://a:1", "http://a", "http://a:1/v1"] {
            assert!(Target::new(bad, None).is_err(), "{bad}");
        }
    }
}
