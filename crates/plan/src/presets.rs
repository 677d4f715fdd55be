//! Models that are known by name: configurations as their publishers write them, read like any other.

macro_rules! presets {
    ($($name:literal),+ $(,)?) => {
        /// Name and `config.json` of every preset. The paper's models (`paper-*`) have the layers, widths, caches and sizes
        /// that arXiv 2412.19255 tells; vocabulary, MLP widths and heads are chosen to reach its parameter counts.
        pub const PRESETS: &[(&str, &str)] = &[$(($name, include_str!(concat!("../presets/", $name, ".json")))),+];
    };
}

presets!(
    "paper-1b-mha",
    "paper-1b-mla",
    "paper-1b-mfa",
    "paper-1b-mfa-kr",
    "paper-7b-mha",
    "paper-7b-mla",
    "paper-7b-mfa",
    "paper-7b-mfa-kr",
    "step-3",
    "deepseek-v3",
    "kimi-k2",
    "qwen3-235b-a22b",
    "qwen3-32b",
    "llama-2-7b",
    "llama-3-8b",
    "llama-3-70b",
    "mistral-7b",
    "gemma-3-27b",
    "tpa-1.5b",
);

/// All names, for people.
pub(crate) fn known() -> String {
    PRESETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}
