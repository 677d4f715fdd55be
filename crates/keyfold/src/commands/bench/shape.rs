//! The models that benchmarks run on.

use keyfold_model::{
    ModelConfig,
    attention::{AttentionConfig, DESIGNS, Scale},
    match_params,
};
use serde_json::json;

/// Largest size that products are formed of.
const MAX_SIZE: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct ShapeArgs {
    /// Attention kinds, separated by commas [default: mha, and mfa with 8 heads of 128].
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    attention: Vec<String>,
    /// Token ids.
    #[arg(long, default_value_t = 4096)]
    vocab: usize,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 256)]
    width: usize,
    /// Layers.
    #[arg(long, default_value_t = 6)]
    layers: usize,
    /// Query heads [default: by kind].
    #[arg(long)]
    heads: Option<usize>,
    /// Head width [default: by kind].
    #[arg(long)]
    head_dim: Option<usize>,
    /// Width of the key and value that the heads of mfa and mfa-kr share [default: --head-dim, or 128].
    #[arg(long)]
    shared_width: Option<usize>,
    /// Width of the MLP [default: 8/3 of --width, in steps of 64].
    #[arg(long)]
    mlp_width: Option<usize>,
    /// Rank of factorised queries [default: 128].
    #[arg(long)]
    query_rank: Option<usize>,
    /// Give all models the number of parameters of this kind's: by their heads, then by the width of the MLP.
    #[arg(long, value_name = "KIND")]
    match_params: Option<String>,
}

/// How far from equal matched models may be.
const TOLERANCE: f64 = 0.01;

impl ShapeArgs {
    /// The models to run, each able to hold `positions` tokens.
    pub(super) fn models(&self, positions: usize) -> anyhow::Result<Vec<ModelConfig>> {
        let default = ["mha".to_owned(), "mfa".to_owned()];
        let kinds = if self.attention.is_empty() { &default[..] } else { &self.attention };
        let reference = self.match_params.as_ref().map(|kind| self.model(kind, positions)).transpose()?;
        let matched = |kind: &String| {
            let model = self.model(kind, positions)?;
            match &reference {
                None => Ok(model),
                Some(reference) => Ok(match_params(reference, &model.attention, TOLERANCE)?.config),
            }
        };
        kinds.iter().map(matched).collect()
    }

    fn model(&self, kind: &str, positions: usize) -> anyhow::Result<ModelConfig> {
        let head_dim = self.head_dim.unwrap_or(64);
        let shared_width = self.shared_width.unwrap_or(head_dim);
        for (name, size) in
            [("--width", self.width), ("--head-dim", head_dim), ("--shared-width", shared_width)]
        {
            anyhow::ensure!((1..=MAX_SIZE).contains(&size), "{name} is {size}: expected 1 to {MAX_SIZE}");
        }
        let scale = Scale::new(self.width, head_dim);
        let known: Vec<&str> = DESIGNS.iter().map(|(kind, _)| *kind).collect();
        let Some(preset) = AttentionConfig::preset(kind, &scale) else {
            anyhow::bail!("--attention: unknown kind `{kind}`: expected one of {}", known.join(", "));
        };
        let mut attention = serde_json::to_value(preset)?;
        if kind.starts_with("mfa") {
            attention["heads"] = self.heads.unwrap_or(8).into();
            attention["head_dim"] = self.shared_width.or(self.head_dim).unwrap_or(128).into();
            attention["query_rank"] = self.query_rank.unwrap_or(128).into();
        } else if let Some(heads) = self.heads {
            attention["heads"] = heads.into();
        }
        let config: ModelConfig = serde_json::from_value(json!({
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            // The peers' width: 8/3 of the residual stream, in steps of 64.
            "intermediate_size": self.mlp_width.unwrap_or(self.width * 8 / 3 / 64 * 64),
            "max_position_embeddings": positions,
            "attention": attention,
        }))?;
        config.validate()?;
        Ok(config)
    }
}
