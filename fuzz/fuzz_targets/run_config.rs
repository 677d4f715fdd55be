#![no_main]

use keyfold_train::config::RunConfig;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|data: &str| {
    let mut parts = data.split('\0');
    let text = parts.next().unwrap_or_default();
    let overrides: Vec<String> = parts.map(str::to_owned).collect();
    if let Ok(config) = RunConfig::parse(text, Path::new("run.toml"), &overrides) {
        let written = config.to_toml().expect("what was read can be written");
        RunConfig::parse(&written, Path::new("run.toml"), &[]).expect("what was written can be read");
        let _ = config.model.validate();
    }
});
