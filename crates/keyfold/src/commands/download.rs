//! `keyfold download`: a model from the Hugging Face hub.

use super::print_line;
use keyfold_data::fetch;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Its name on the hub: OWNER/NAME. HF_TOKEN gives access to models with terms, HF_ENDPOINT names another hub.
    name: String,
    /// Branch, tag or commit; the commit that it names is recorded in the folder's source.json.
    #[arg(long, default_value = "main", value_name = "R")]
    revision: String,
    /// The folder to make [default: the model's name, without its owner].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let name = args.name.rsplit('/').next().unwrap_or(&args.name);
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(name));
    let commit = fetch::model(&args.name, &args.revision, &out)?;
    print_line(format_args!("{}: {} at commit {commit}", out.display(), args.name))
}
