//! `keyfold serve`: a model over HTTP, in OpenAI's form.

use super::{
    print_line,
    serving::{ByteSize, ServingArgs, keys},
};
use anyhow::Context;
use keyfold_core::units;
use keyfold_server::{Limits, Server, ServerConfig};
use keyfold_tensor::Device;
use std::{path::PathBuf, time::Duration};
use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A model folder, or the folder of a run.
    model: PathBuf,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    host: String,
    /// Port to listen on; 0 takes any that is free.
    #[arg(long, default_value_t = 8080, value_name = "PORT")]
    port: u16,
    /// A file with keys, one a line, of which clients must send one.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Requests that wait beyond those that run, before more are told to come later.
    #[arg(long, default_value_t = Limits::default().queue, value_name = "N")]
    queue: usize,
    /// Connections at a time.
    #[arg(long, default_value_t = Limits::default().connections, value_name = "N")]
    connections: usize,
    /// Size of a request.
    #[arg(long, default_value = "4MiB", value_name = "SIZE")]
    max_body: ByteSize,
    /// Seconds that an answer may take.
    #[arg(long, default_value_t = Limits::default().request_time.as_secs(), value_name = "S")]
    request_timeout: u64,
    /// Seconds that answers have to end after the server was told to stop.
    #[arg(long, default_value_t = Limits::default().grace.as_secs(), value_name = "S")]
    grace: u64,
    /// Write prompts and texts to the log.
    #[arg(long)]
    log_prompts: bool,
    #[command(flatten)]
    serving: ServingArgs,
}

pub(crate) fn run(args: &Args, device: Device) -> anyhow::Result<()> {
    anyhow::ensure!(args.connections > 0, "--connections is 0: expected at least 1");
    let limits = Limits {
        queue: args.queue,
        connections: args.connections,
        body_bytes: usize::try_from(args.max_body.0).context("--max-body is too large")?,
        request_time: Duration::from_secs(args.request_timeout),
        grace: Duration::from_secs(args.grace),
        ..Limits::default()
    };
    let api_keys = args.api_key_file.as_deref().map(keys).transpose()?.unwrap_or_default();
    let serving = args.serving.start(&args.model, &limits, device)?;
    let config = ServerConfig { limits, api_keys, log_texts: args.log_prompts };
    // Connections need little; the processors are the model's.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let stop = Stop::watch()?;
        let (engine, name) = (serving.config, serving.name);
        let server = Server::bind(serving.service, config, &args.host, args.port).await?;
        eprintln!(
            "{name}: cache of {} for {} tokens in pages of {}, up to {} requests at a time, up to {} tokens each",
            units::bytes(serving.cache_bytes),
            units::grouped((engine.pages * engine.page_size) as u64),
            engine.page_size,
            engine.max_running,
            units::grouped(engine.capacity() as u64)
        );
        print_line(format_args!("listening on http://{}", server.address()?))?;
        server.run(stop.asked()).await;
        anyhow::Ok(())
    })
}

/// Ctrl-C and SIGTERM: the first asks to stop, the second ends the process.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

/// What a shell expects of a process that a signal ended.
const INTERRUPTED: i32 = 130;

impl Stop {
    fn watch() -> anyhow::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Ready when the server is to stop.
    async fn asked(mut self) {
        self.next().await;
        eprintln!("stopping once answers have ended; another signal stops at once");
        tokio::spawn(async move {
            self.next().await;
            std::process::exit(INTERRUPTED);
        });
    }
}
