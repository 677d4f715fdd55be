//! `keyfold table`: the paper's capacity table.

use super::print_line;
use keyfold_plan::table::{Format, Sizes, table};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Width H of the residual stream.
    #[arg(long, default_value_t = 2048, value_name = "H")]
    hidden: u64,
    /// Heads n of MHA, MQA and GQA.
    #[arg(long, default_value_t = 16, value_name = "n")]
    heads: u64,
    /// Width d of these heads [default: H / n].
    #[arg(long, value_name = "d")]
    head_dim: Option<u64>,
    /// Key/value heads g of GQA [default: a quarter of n].
    #[arg(long, value_name = "g")]
    kv_heads: Option<u64>,
    /// Width C of MFA's shared key, rank of MLA's latents.
    #[arg(long, default_value_t = 256, value_name = "C")]
    shared: u64,
    /// Heads m of MLA, MFA and MFA-KR.
    #[arg(short, long = "mla-heads", visible_alias = "mfa-heads", default_value_t = 26, value_name = "m")]
    mla_heads: u64,
    /// Width d_r of MLA's rope key.
    #[arg(long, default_value_t = 64, value_name = "d_r")]
    rope_dim: u64,
    /// How to write it.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: FormatName,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum FormatName {
    /// Markdown.
    #[default]
    Markdown,
    /// A LaTeX tabular.
    Latex,
    /// JSON.
    Json,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let sizes = Sizes {
        hidden: args.hidden,
        heads: args.heads,
        head_dim: args.head_dim.unwrap_or_else(|| args.hidden / args.heads.max(1)),
        kv_heads: args
            .kv_heads
            .unwrap_or_else(|| if args.heads.is_multiple_of(4) { args.heads / 4 } else { 1 }.max(1)),
        shared: args.shared,
        factored_heads: args.mla_heads,
        rope_dim: args.rope_dim,
    };
    let format = match args.format {
        FormatName::Markdown => Format::Markdown,
        FormatName::Latex => Format::Latex,
        FormatName::Json => Format::Json,
    };
    print_line(table(&sizes, format)?)
}
