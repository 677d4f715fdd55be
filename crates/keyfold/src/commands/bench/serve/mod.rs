//! `keyfold bench serve`: how long clients of a server wait, and how much it does in all.

mod client;

use crate::commands::{print_line, serving::ServingArgs};
use anyhow::Context;
use client::{Sample, Target};
use keyfold_ops::sample::Rng;
use keyfold_server::{Limits, Server, ServerConfig};
use keyfold_tensor::Device;
use serde::Serialize;
use serde_json::json;
use std::{
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A model folder to serve and measure.
    #[arg(required_unless_present = "url", conflicts_with = "url")]
    model: Option<PathBuf>,
    /// A server to measure instead, of any make: http://HOST:PORT.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// What the server calls its model.
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Requests to send.
    #[arg(long, default_value_t = 32, value_name = "N")]
    requests: usize,
    /// Clients, each of which sends its next request when it has the answer to its last (closed loop).
    #[arg(long, default_value_t = 16, value_name = "N")]
    concurrency: usize,
    /// Requests per second at random moments instead, whether or not the earlier ones are answered (open loop).
    #[arg(long, value_name = "R")]
    rate: Option<f64>,
    /// Tokens of a prompt.
    #[arg(long, default_value_t = 128, value_name = "N")]
    prompt: usize,
    /// Those of them that all prompts begin with.
    #[arg(long, default_value_t = 0, value_name = "N")]
    shared: usize,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 64, value_name = "N")]
    tokens: usize,
    /// Token ids below this one make the prompts.
    #[arg(long, default_value_t = 4096, value_name = "N")]
    ids: u32,
    /// Seed of the prompts and moments.
    #[arg(long, default_value_t = 0, value_name = "S")]
    seed: u64,
    /// Requests to send before, which are not measured.
    #[arg(long, default_value_t = 1, value_name = "N")]
    warmup: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    serving: ServingArgs,
}

/// How long something took, over all requests, in milliseconds.
#[derive(Debug, Serialize)]
struct Times {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    requests: usize,
    failed: usize,
    concurrency: Option<usize>,
    rate: Option<f64>,
    prompt_tokens: usize,
    made_tokens: usize,
    seconds: f64,
    requests_per_s: f64,
    made_tokens_per_s: f64,
    total_tokens_per_s: f64,
    ttft_ms: Times,
    tpot_ms: Times,
    whole_ms: Times,
}

pub(crate) fn run(args: &Args, device: Device) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.requests > 0 && args.concurrency > 0 && args.prompt > 0 && args.tokens > 0 && args.ids > 1,
        "--requests, --concurrency, --prompt, --tokens: expected at least 1, --ids: at least 2"
    );
    anyhow::ensure!(
        args.rate.is_none_or(|rate| rate.is_finite() && rate > 0.0),
        "--rate: expected a number above 0"
    );
    let report = match (&args.url, &args.model) {
        (Some(url), _) => {
            let key = std::env::var("OPENAI_API_KEY").ok();
            measure(args, &Target::new(url, key)?, args.model_name.as_deref())?
        }
        (None, Some(model)) => serve(args, model, device)?,
        (None, None) => anyhow::bail!("expected a model folder or --url"),
    };
    if args.json {
        return print_line(serde_json::to_string_pretty(&report)?);
    }
    let times = |times: &Times| format!("{:.1} / {:.1} / {:.1}", times.p50, times.p90, times.p99);
    print_line(format_args!(
        "{} requests ({} failed) in {:.2} s: {:.1} tokens/s made, {:.1} with prompts\n\
         milliseconds, p50 / p90 / p99: first token {}, each token {}, whole {}",
        report.requests,
        report.failed,
        report.seconds,
        report.made_tokens_per_s,
        report.total_tokens_per_s,
        times(&report.ttft_ms),
        times(&report.tpot_ms),
        times(&report.whole_ms)
    ))
}

/// Serves a model on a port of its own while it is measured.
fn serve(args: &Args, model: &std::path::Path, device: Device) -> anyhow::Result<Report> {
    let limits = Limits { queue: args.requests.max(Limits::default().queue), ..Limits::default() };
    let serving = args.serving.start(model, &limits, device)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let config = ServerConfig { limits, ..ServerConfig::default() };
    let server = runtime.block_on(Server::bind(serving.service, config, "127.0.0.1", 0))?;
    let url = format!("http://{}", server.address()?);
    let (stop, stopped) = oneshot::channel::<()>();
    let served = runtime.spawn(server.run(async { drop(stopped.await) }));
    let report = measure(args, &Target::new(&url, None)?, None);
    drop(stop);
    runtime.block_on(served)?;
    report
}

/// A prompt of random tokens, the first ones the same for all.
fn prompt(args: &Args, number: usize) -> Vec<u32> {
    let id = |rng: &mut Rng| (rng.next_u64() % u64::from(args.ids)) as u32;
    let mut all = Rng::new(args.seed);
    let mut own = Rng::new(args.seed ^ (number as u64 + 1).wrapping_mul(0x9E37_79B9));
    (0..args.prompt).map(|at| id(if at < args.shared { &mut all } else { &mut own })).collect()
}

fn measure(args: &Args, target: &Target, name: Option<&str>) -> anyhow::Result<Report> {
    let body = |number: usize| {
        let mut body = json!({
            "prompt": prompt(args, number),
            "max_tokens": args.tokens,
            "temperature": 0,
            // Every answer has the same length.
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if let Some(name) = name {
            body["model"] = json!(name);
        }
        body
    };
    for number in 0..args.warmup {
        // A prompt that is not measured.
        target.complete(&body(args.requests + number)).context("the first request")?;
    }
    let samples = Mutex::new(Vec::new());
    let failed = AtomicUsize::new(0);
    let ask = |number: usize| match target.complete(&body(number)) {
        Ok(sample) => samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample),
        Err(error) => {
            if failed.fetch_add(1, Relaxed) == 0 {
                eprintln!("a request failed: {error:#}");
            }
        }
    };
    let began = Instant::now();
    match args.rate {
        Some(rate) => open_loop(args, rate, &ask),
        None => closed_loop(args, &ask),
    }
    let seconds = began.elapsed().as_secs_f64();
    let samples = samples.into_inner().unwrap_or_else(PoisonError::into_inner);
    anyhow::ensure!(!samples.is_empty(), "no request was answered");
    Ok(report(args, &samples, failed.into_inner(), seconds))
}

fn closed_loop(args: &Args, ask: &(impl Fn(usize) + Sync)) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..args.concurrency.min(args.requests) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= args.requests {
                        return;
                    }
                    ask(number);
                }
            });
        }
    });
}

/// The times between requests are random and independent of one another, as those of many strangers are.
fn open_loop(args: &Args, rate: f64, ask: &(impl Fn(usize) + Sync)) {
    let mut rng = Rng::new(args.seed);
    let began = Instant::now();
    let mut at = 0.0;
    std::thread::scope(|scope| {
        for number in 0..args.requests {
            let wait = Duration::from_secs_f64(at).saturating_sub(began.elapsed());
            std::thread::sleep(wait);
            scope.spawn(move || ask(number));
            at -= (1.0 - rng.uniform()).ln() / rate;
        }
    });
}

fn report(args: &Args, samples: &[Sample], failed: usize, seconds: f64) -> Report {
    let prompt_tokens: usize = samples.iter().map(|sample| sample.prompt_tokens).sum();
    let made_tokens: usize = samples.iter().map(|sample| sample.made_tokens).sum();
    let times = |of: &dyn Fn(&Sample) -> Option<Duration>| {
        let mut each: Vec<f64> = samples.iter().filter_map(of).map(|time| 1e3 * time.as_secs_f64()).collect();
        each.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = each.len().saturating_sub(1);
            each.get(((share * last as f64).round() as usize).min(last)).copied().unwrap_or(0.0)
        };
        let mean = each.iter().sum::<f64>() / each.len().max(1) as f64;
        Times { mean, p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    };
    Report {
        requests: samples.len() + failed,
        failed,
        concurrency: args.rate.is_none().then_some(args.concurrency),
        rate: args.rate,
        prompt_tokens,
        made_tokens,
        seconds,
        requests_per_s: samples.len() as f64 / seconds,
        made_tokens_per_s: made_tokens as f64 / seconds,
        total_tokens_per_s: (prompt_tokens + made_tokens) as f64 / seconds,
        ttft_ms: times(&|sample| Some(sample.first)),
        tpot_ms: times(&Sample::each),
        whole_ms: times(&|sample| Some(sample.whole)),
    }
}
