//! `keyfold data`: corpora.

use super::print_line;
use keyfold_data::fetch;
use std::path::PathBuf;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Download a well-known corpus.
    Fetch {
        /// Its name; see `keyfold data list`.
        name: String,
        /// Folder to put it in.
        #[arg(long, default_value = "data", value_name = "DIR")]
        out: PathBuf,
    },
    /// List the corpora that can be fetched.
    List,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Fetch { name, out } => print_line(fetch::fetch(name, out)?.display())?,
        Command::List => {
            for corpus in fetch::CORPORA {
                let size = keyfold_core::units::bytes(corpus.bytes);
                print_line(format_args!(
                    "{:16} {size:>10}  {}  {}/{}",
                    corpus.name, corpus.licence, corpus.repo, corpus.file
                ))?;
            }
        }
    }
    Ok(())
}
