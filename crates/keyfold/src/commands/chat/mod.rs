//! `keyfold chat`: a conversation with a model, in the terminal or through a pipe.
//!
//! Answers go to standard output, everything else to standard error.

mod session;

use super::{sampling::SamplingArgs, storage::StorageArgs};
use crate::{interrupt::Answering, model_dir::ModelDir};
use anyhow::Context;
use keyfold_core::units;
use keyfold_model::Decoder;
use keyfold_ops::sample::Rng;
use keyfold_tensor::Device;
use session::{Answer, Options, Session};
use std::{
    io::{BufRead, IsTerminal, Write},
    path::PathBuf,
};

/// Tokens that a conversation may have where nothing else is said.
const CONTEXT: usize = 4096;

const HELP: &str = "\
/reset  forget the conversation
/stats  size of the cache, speed
/help   this list
/exit   leave (as the end of input does)
Ctrl-C stops an answer. All else is said to the model.";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A model folder, or the folder of a run.
    model: PathBuf,
    /// A system prompt, for templates that take one.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// A Jinja chat template to use instead of the folder's own.
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// Tokens of an answer at most.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    max_tokens: usize,
    /// Tokens that the conversation may have; the oldest exchanges are forgotten beyond that [default: 4096, or the model's
    /// longest sequence].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    storage: StorageArgs,
}

pub(crate) fn run(args: &Args, device: Device) -> anyhow::Result<()> {
    args.sampling.validate()?;
    anyhow::ensure!(args.max_tokens > 0, "--max-tokens is 0: expected at least 1");
    let model = ModelDir::open_on(&args.model, args.storage.dtype, device)?;
    let longest = model.config.max_position_embeddings;
    let context = args.context.unwrap_or(CONTEXT.min(longest));
    anyhow::ensure!(
        (2..=longest).contains(&context),
        "--context is {context}: expected 2 to the model's longest sequence, {longest}"
    );
    let tokenizer = model.tokenizer()?;
    let template = model.chat_template(args.template.as_deref())?;
    let defaults = model.defaults(&tokenizer)?;
    let options = Options {
        sampler: args.sampling.sampler(&defaults)?,
        repetition_penalty: args.sampling.repetition_penalty(&defaults)?,
        ends: defaults.ends,
        max_tokens: args.max_tokens,
        system: args.system.clone(),
    };
    let decoder = Decoder::new(&model.config, &model.weights)?;
    let cache = decoder.cache(context, args.storage.kv_dtype(device))?;
    let rng = Rng::new(args.sampling.seed);
    let mut session = Session::new(&model, &decoder, &tokenizer, &template, cache, options, rng);
    let interrupt = Answering::watch()?;
    let (mut input, terminal) = (std::io::stdin().lock(), std::io::stdin().is_terminal());
    if terminal {
        eprintln!("{} ({}); /help lists commands", model.path.display(), model.family.architecture);
    }
    let mut line = String::new();
    loop {
        if terminal {
            eprint!("> ");
        }
        line.clear();
        if input.read_line(&mut line).context("standard input")? == 0 {
            return Ok(());
        }
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => return Ok(()),
            "/help" => eprintln!("{HELP}"),
            "/reset" => session.reset(),
            "/stats" => eprintln!("{}", stats(&session)),
            command if command.starts_with('/') => {
                eprintln!("unknown command {command}; /help lists commands")
            }
            said => {
                interrupt.set_busy(true);
                let answered = answer(&mut session, said, &interrupt);
                interrupt.set_busy(false);
                match answered {
                    // In a terminal there is somebody who can say it otherwise.
                    Err(error) if terminal => eprintln!("error: {error:#}"),
                    answered => answered?,
                }
            }
        }
    }
}

/// Answers and shows the answer as it is made.
fn answer(session: &mut Session<'_>, said: &str, interrupt: &Answering) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let mut failed = None;
    let Answer { stopped, forgotten, .. } = session.answer(said, interrupt.stopped(), |piece| {
        failed = write!(out, "{piece}").and_then(|()| out.flush()).err();
        failed.is_none()
    })?;
    failed.map_or(Ok(()), Err).context("standard output")?;
    writeln!(out).and_then(|()| out.flush()).context("standard output")?;
    if let Some(why) = stopped {
        eprintln!("({why})");
    }
    if forgotten > 0 {
        eprintln!("({forgotten} older exchanges no longer fit and were forgotten; see --context)");
    }
    Ok(())
}

fn stats(session: &Session<'_>) -> String {
    let (cache, totals) = (session.cache(), session.totals());
    let per_token = cache.bytes_per_token();
    let mut text = format!(
        "cache: {} B per token, {} for {} tokens; room for {} tokens in {}",
        units::grouped(per_token as u64),
        units::bytes((per_token * cache.len()) as u64),
        units::grouped(cache.len() as u64),
        units::grouped(cache.capacity() as u64),
        units::bytes(cache.bytes() as u64),
    );
    if let Some(last) = session.last() {
        text += &format!(
            "\nlast answer: {} tokens, {:.1} tok/s, after {} tokens of which {} were in the cache and {} took {:.0} ms",
            last.made,
            last.speed(),
            last.prompt,
            last.reused,
            last.prompt - last.reused,
            1e3 * last.prefill.as_secs_f64(),
        );
    }
    text + &format!(
        "\nin all: {} answers, {} tokens, {:.1} tok/s",
        totals.answers,
        units::grouped(totals.made as u64),
        totals.steps as f64 / totals.decode.as_secs_f64().max(1e-9),
    )
}
