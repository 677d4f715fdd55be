//! Options on how a model is served, shared by the commands that serve one, and the service they make.

use super::storage::StorageArgs;
use crate::model_dir::{ModelDir, generation};
use anyhow::Context;
use keyfold_core::units;
use keyfold_engine::{EngineConfig, Lookup, pages};
use keyfold_model::{Decoder, ModelConfig, PagedCache};
use keyfold_runner::ModelRunner;
use keyfold_server::{CacheFacts, Defaults, Limits, Model, Service};
use keyfold_tensor::Device;
use std::{path::Path, path::PathBuf, str::FromStr};

#[derive(Debug, clap::Args)]
pub(crate) struct ServingArgs {
    /// Memory of the cache, such as 512MiB or 4GiB [default: 4GiB, or half of what is free; on a GPU three quarters of it].
    #[arg(long, value_name = "SIZE")]
    kv_memory: Option<ByteSize>,
    /// Tokens of a cache page: what prompts share is found in whole pages.
    #[arg(long, default_value_t = 16, value_name = "N")]
    page_size: usize,
    /// Tokens that go through the model in a step: more read prompts faster, fewer keep the texts that are being written
    /// from waiting for them.
    #[arg(long, default_value_t = 512, value_name = "N")]
    max_batch_tokens: usize,
    /// Requests that share a step.
    #[arg(long, default_value_t = 64, value_name = "N")]
    max_running: usize,
    /// Longest sequence, prompt and new tokens together [default: the model's].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Compute every prompt anew, whatever the cache holds.
    #[arg(long)]
    no_prefix_cache: bool,
    /// Guess so many tokens at a time by looking up what followed before; the same texts, sooner if they repeat
    /// themselves.
    #[arg(long, value_name = "N")]
    lookup: Option<usize>,
    /// What clients call the model [default: the folder's name].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A Jinja chat template to use instead of the folder's own.
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    #[command(flatten)]
    storage: StorageArgs,
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units: [(&str, u64); 8] = [
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
            ("KB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("B", 1),
        ];
        let wrong = || format!("expected a size such as 512MiB or 4GiB, found `{text}`");
        let unit = units.iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?, *bytes)));
        let (number, bytes) = unit.ok_or_else(wrong)?;
        let number: f64 = number.trim().parse().map_err(|_| wrong())?;
        let size = number * bytes as f64;
        if (1.0..1e18).contains(&size) { Ok(Self(size as u64)) } else { Err(wrong()) }
    }
}

/// Memory of the cache where nothing else is said.
const KV_MEMORY: u64 = 4 << 30;
/// Memory of the logits of a step.
const LOGIT_BYTES: usize = 64 << 20;

/// A service, and what it was made of.
pub(crate) struct Serving {
    pub(crate) service: Service,
    pub(crate) name: String,
    pub(crate) config: EngineConfig,
    /// Bytes of memory set aside for the cache.
    pub(crate) cache_bytes: u64,
}

impl ServingArgs {
    /// Opens the model in `path` and starts an engine for it.
    pub(crate) fn start(&self, path: &Path, limits: &Limits, device: Device) -> anyhow::Result<Serving> {
        let dir = ModelDir::open_on(path, self.storage.dtype, device)?;
        let tokenizer = dir.tokenizer()?;
        let wishes = dir.defaults(&tokenizer)?;
        wishes.validate().with_context(|| dir.path.join(generation::FILE).display().to_string())?;
        let name = self.name.clone().unwrap_or_else(|| default_name(path, &dir.path));
        let mut model = Model::new(name.clone(), tokenizer, dir.config.vocab_size, wishes.ends.clone());
        model.template = match &self.template {
            Some(file) => Some(dir.chat_template(Some(file))?),
            None => match dir.chat_template(None) {
                Ok(template) => Some(template),
                Err(error) => {
                    tracing::info!(%error, "no conversations");
                    None
                }
            },
        };
        model.defaults = Defaults {
            temperature: wishes.temperature,
            top_k: wishes.top_k,
            top_p: wishes.top_p,
            min_p: wishes.min_p,
            repetition_penalty: wishes.repetition_penalty,
        };
        model.cache = self.facts(&dir.config, device)?;
        let bytes_per_token = model.cache.bytes_per_token;
        let config = self.engine(&dir.config, bytes_per_token as usize, device)?;
        let decoder = Decoder::new(&dir.config, &dir.weights)?;
        let dtype = self.storage.kv_dtype(device);
        let runner = ModelRunner::new(decoder, config.pages, config.page_size, dtype)?;
        let cache_bytes = runner.cache().bytes() as u64;
        let service = Service::start(model, config, limits, move || runner)?;
        Ok(Serving { service, name, config, cache_bytes })
    }

    fn facts(&self, config: &ModelConfig, device: Device) -> anyhow::Result<CacheFacts> {
        let (design, dtype) = (config.attention.design(), self.storage.kv_dtype(device));
        let layers = config.num_hidden_layers;
        let own = PagedCache::bytes_of_a_token(config, dtype, device)?;
        // Keys and values of as many heads, each as wide as the rank that these heads have.
        let mha = 2 * design.capacity().total_effective_rank() * layers * dtype.bytes();
        Ok(CacheFacts {
            attention: config.attention.kind().to_owned(),
            dtype: dtype.to_string(),
            bytes_per_token: own as u64,
            mha_bytes_per_token: mha as u64,
        })
    }

    /// The engine's limits for a model.
    fn engine(
        &self,
        config: &ModelConfig,
        bytes_per_token: usize,
        device: Device,
    ) -> anyhow::Result<EngineConfig> {
        anyhow::ensure!(self.page_size > 0, "--page-size is 0: expected at least 1");
        anyhow::ensure!(self.max_running > 0, "--max-running is 0: expected at least 1");
        let longest = config.max_position_embeddings;
        let max_len = self.context.unwrap_or(longest);
        anyhow::ensure!(
            (2..=longest).contains(&max_len),
            "--context is {max_len}: expected 2 to the model's longest sequence, {longest}"
        );
        let free = device.available_memory();
        let memory = match self.kv_memory {
            Some(ByteSize(memory)) => {
                anyhow::ensure!(
                    free.is_none_or(|free| memory <= free),
                    "--kv-memory is {}: expected at most what is free, {}",
                    units::bytes(memory),
                    units::bytes(free.unwrap_or(0))
                );
                memory
            }
            None if device == Device::Cpu => KV_MEMORY.min(free.map_or(u64::MAX, |free| free / 2)),
            // A GPU is there for this; what is left is for the values of a step.
            None => free.map_or(KV_MEMORY, |free| free / 4 * 3),
        };
        let fitting = pages::fitting(memory, bytes_per_token, self.page_size);
        anyhow::ensure!(
            fitting > 0,
            "--kv-memory is {}: expected at least {} for a page of {} tokens",
            units::bytes(memory),
            units::bytes((bytes_per_token * self.page_size) as u64),
            self.page_size
        );
        // More than this many pages are never used at a time; some more keep what is not in use.
        let useful = max_len.div_ceil(self.page_size).saturating_mul(self.max_running).saturating_mul(2);
        let rows = LOGIT_BYTES / (4 * config.vocab_size.max(1));
        Ok(EngineConfig {
            pages: fitting.min(useful),
            page_size: self.page_size,
            max_len,
            vocab_size: config.vocab_size,
            max_batch_tokens: self.max_batch_tokens,
            max_running: self.max_running,
            max_logits: self.max_running + rows.clamp(8, self.max_batch_tokens.max(8)),
            prefix_cache: !self.no_prefix_cache,
            lookup: self.lookup.map(|tokens| Lookup { tokens, ..Lookup::default() }),
        })
    }
}

/// The name of the folder that was asked for, or of the one that the model was found in.
fn default_name(asked: &Path, found: &Path) -> String {
    let name =
        |path: &Path| path.canonicalize().ok()?.file_name().map(|name| name.to_string_lossy().into_owned());
    name(asked).or_else(|| name(found)).unwrap_or_else(|| "model".to_owned())
}

/// The keys in a file.
pub(crate) fn keys(file: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let keys = keyfold_server::keys_from(&text);
    // A file without keys would leave the door open that it was to close.
    anyhow::ensure!(!keys.is_empty(), "{}: expected a key on a line, found none", file.display());
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let size = |text: &str| text.parse::<ByteSize>().map(|size| size.0);
        assert_eq!(size("4GiB"), Ok(4 << 30));
        assert_eq!(size("1.5 MiB"), Ok(3 << 19));
        assert_eq!(size("2GB"), Ok(2_000_000_000));
        assert_eq!(size("512B"), Ok(512));
        for bad in ["", "4", "GiB", "-1GiB", "0B", "1e30GiB", "NaNGiB", "4 gib"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
