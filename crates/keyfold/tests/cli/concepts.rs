//! The marked blocks of `docs/concepts` are what their commands print. `KEYFOLD_BLESS=1` writes them anew.

use crate::support::succeed;
use std::{fs, path::Path};

const OPEN: &str = "<!-- keyfold: ";
const CLOSE: &str = "<!-- /keyfold -->";

/// A page with every marked block as its command prints it.
fn generated(page: &str) -> String {
    let mut fresh = String::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        fresh.push_str(line);
        fresh.push('\n');
        let Some(command) = line.strip_prefix(OPEN).and_then(|rest| rest.strip_suffix(" -->")) else {
            continue;
        };
        assert!(lines.by_ref().any(|line| line == CLOSE), "`{line}` has no end");
        let args: Vec<&str> = command.split_whitespace().collect();
        let told = succeed(Path::new("."), &args);
        let block = match args[0] {
            "table" => format!("`keyfold {command}`\n\n{}", told.trim_end()),
            _ => format!("```text\n$ keyfold {command}\n{}\n```", told.trim_end()),
        };
        fresh.push_str(&format!("{block}\n{CLOSE}\n"));
    }
    fresh
}

#[test]
fn blocks_are_what_their_commands_print() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/concepts");
    let mut blocks = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let page = fs::read_to_string(&path).unwrap();
        blocks += page.matches(OPEN).count();
        let fresh = generated(&page);
        if std::env::var_os("KEYFOLD_BLESS").is_some() {
            fs::write(&path, &fresh).unwrap();
        }
        let stale = page.lines().zip(fresh.lines()).find(|(old, new)| old != new);
        let same = page == fresh || std::env::var_os("KEYFOLD_BLESS").is_some();
        assert!(same, "{}: stale, run with KEYFOLD_BLESS=1: {stale:?}", path.display());
    }
    assert!(blocks >= 9, "{blocks} blocks");
}
