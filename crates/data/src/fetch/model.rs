//! Models from the Hugging Face hub.
//!
//! A branch or tag is first made a commit, so that all files are of one version. Files gather in a hidden folder beside the
//! one that was asked for, which a later call goes on from, and appear together when all are there.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Repo, RepoType};
use serde_json::{Value, json};

use super::endpoint;
use crate::{DataError, Result, files};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Where the folder comes from.
const SOURCE: &str = "source.json";
/// What is taken beside the weights, where the model has it.
const WANTED: [&str; 11] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "README.md",
];

/// Downloads configuration, tokenizer and safetensors weights of the model `name` into `folder`, which must not exist, and
/// gives the commit. `HF_TOKEN` gives access to models with terms, `HF_ENDPOINT` names another hub.
///
/// # Errors
/// A name that is none, a folder that exists, a hub that does not answer, or a model without safetensors weights.
pub fn model(name: &str, revision: &str, folder: &Path) -> Result<String> {
    let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty());
    model_from(&endpoint(), token, name, revision, folder)
}

pub(super) fn model_from(
    endpoint: &str,
    token: Option<String>,
    name: &str,
    revision: &str,
    folder: &Path,
) -> Result<String> {
    check(name, revision)?;
    let exists = || std::io::Error::from(std::io::ErrorKind::AlreadyExists);
    if folder.exists() {
        return Err(DataError::io(folder, "create")(exists()));
    }
    let partial = beside(folder)?;
    let gathered = partial.join("files");
    let failed = |what: &str, e: ApiError| {
        let reason = e.to_string();
        // The library has one error for both; its text names the status that a hub answered with.
        let problem = if reason.contains("status") { "refused" } else { "could not be reached for" };
        DataError::HubModel {
            name: name.to_owned(),
            url: format!("{endpoint}/{name}"),
            problem,
            what: what.to_owned(),
            reason,
        }
    };
    let api = ApiBuilder::new()
        .with_endpoint(endpoint.to_owned())
        .with_cache_dir(partial.join("hub"))
        .with_token(token)
        .with_retries(3)
        .with_progress(std::io::stderr().is_terminal())
        .build()
        .map_err(|e| failed("the connection", e))?;
    let at = |revision: &str| Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned());
    let info = api.repo(at(revision)).info().map_err(|e| failed("the list of files", e))?;
    std::fs::create_dir_all(&gathered).map_err(DataError::io(&gathered, "create"))?;
    let listed: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    let store = Store { repo: api.repo(at(&info.sha)), folder: &gathered, failed: &failed };
    let get = |file: &str| store.get(file);
    get("config.json")?;
    for file in WANTED.iter().filter(|file| listed.iter().any(|name| name == *file)) {
        get(file)?;
    }
    if listed.iter().any(|file| file == WEIGHTS) {
        get(WEIGHTS)?;
    } else if listed.iter().any(|file| file == INDEX) {
        for shard in shards(&get(INDEX)?)? {
            get(&shard)?;
        }
    } else {
        let found = listed.iter().filter(|file| file.ends_with(".bin") || file.ends_with(".gguf")).cloned();
        return Err(DataError::NoWeights {
            name: name.to_owned(),
            found: found.collect::<Vec<_>>().join(", "),
        });
    }
    let source = json!({"name": name, "revision": revision, "commit": info.sha});
    files::write_text(&gathered.join(SOURCE), &format!("{source:#}\n"))?;
    std::fs::rename(&gathered, folder).map_err(DataError::io(folder, "write"))?;
    std::fs::remove_dir_all(&partial).map_err(DataError::io(&partial, "remove"))?;
    Ok(info.sha)
}

/// Where files of one commit gather.
struct Store<'a> {
    repo: ApiRepo,
    folder: &'a Path,
    failed: &'a dyn Fn(&str, ApiError) -> DataError,
}

impl Store<'_> {
    /// The file, downloaded unless it is there already.
    fn get(&self, file: &str) -> Result<PathBuf> {
        let place = self.folder.join(file);
        // Beside the folder, so that it does not become part of the model.
        let marker = self.folder.with_file_name(format!("{file}.commit"));
        let commit = self.repo.url(file);
        let whole = std::fs::read_to_string(&marker).is_ok_and(|text| text == commit);
        if place.exists() && whole {
            return Ok(place);
        }
        let found = self.repo.get(file).map_err(|e| (self.failed)(file, e))?;
        // The library gives a link into its store.
        let found = found.canonicalize().map_err(DataError::io(&found, "read"))?;
        std::fs::rename(&found, &place).map_err(DataError::io(&place, "write"))?;
        files::write_text(&marker, &commit)?;
        Ok(place)
    }
}

/// The hidden folder beside `folder` that files gather in.
fn beside(folder: &Path) -> Result<PathBuf> {
    let Some(name) = folder.file_name() else {
        let error = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path has no name");
        return Err(DataError::io(folder, "create")(error));
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push("-download");
    Ok(folder.with_file_name(hidden))
}

/// Fails unless `name` is `OWNER/NAME` (or an old `NAME`) and `revision` is none that could lead elsewhere.
fn check(name: &str, revision: &str) -> Result<()> {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let wrong = |key, expected, found: &str| DataError::Spec { key, expected, found: found.to_owned() };
    if name.split('/').count() > 2 || !name.split('/').all(plain) {
        return Err(wrong("model", "OWNER/NAME, a model of the hub", name));
    }
    if !revision.split('/').all(plain) {
        return Err(wrong("revision", "a branch, tag or commit", revision));
    }
    Ok(())
}

/// The files that an index of shards lists.
fn shards(index: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(index).map_err(DataError::io(index, "read"))?;
    let wrong = |found: String| DataError::JsonKey {
        path: index.to_path_buf(),
        key: "weight_map".to_owned(),
        expected: "an object of .safetensors files in the same folder",
        found,
    };
    let json: Value = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| wrong("absent".to_owned()))?;
    let mut names: Vec<String> = Vec::new();
    for value in map.values() {
        let name =
            value.as_str().filter(|name| name.ends_with(".safetensors") && !name.contains(['/', '\\']));
        names.push(name.ok_or_else(|| wrong(value.to_string()))?.to_owned());
    }
    names.sort();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests;
