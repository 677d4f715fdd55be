//! The capacity table of arXiv 2412.19255 (table 1): formulas as the paper prints them, and their numbers.
//!
//! FPBA, fully parameterised bilinear attention, is the paper's upper bound: no design, so its numbers come from the
//! formulas. The paper's MLA keeps the latents of keys and of values apart, which DeepSeek-V2 and this program do not; the
//! row below it is theirs. All other numbers are the designs' own, without norms, biases and gates.

use crate::{
    Grid, PlanError,
    inspect::Shape,
    symbols::{self, Symbols},
};
use keyfold_core::units::grouped;
use keyfold_model::attention::AttentionConfig;
use serde::Serialize;
use serde_json::{Value, json};

/// What the letters stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Hidden width H.
    pub hidden: u64,
    /// Heads n of MHA, MQA and GQA; n d = H.
    pub heads: u64,
    /// Width d of their heads.
    pub head_dim: u64,
    /// Key/value heads g of GQA.
    pub kv_heads: u64,
    /// Shared width C of MFA and MFA-KR, and rank of MLA's latents.
    pub shared: u64,
    /// Heads m of MLA and MFA.
    pub factored_heads: u64,
    /// Width d_r of MLA's rope key.
    pub rope_dim: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            hidden: 2048,
            heads: 16,
            head_dim: 128,
            kv_heads: 4,
            shared: 256,
            factored_heads: 26,
            rope_dim: 64,
        }
    }
}

/// The figures of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Numbers {
    /// Cache elements per token and layer.
    pub cache: u64,
    /// Parameters of a layer.
    pub parameters: u64,
    /// Heads.
    pub heads: u64,
    /// Factorization rank per head.
    pub rank_per_head: u64,
    /// Shared latent subspace dimension.
    pub shared_latent_dim: u64,
    /// Total effective rank.
    pub total_effective_rank: u64,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The method.
    pub method: &'static str,
    /// Its formulas.
    pub symbols: Symbols,
    /// Its numbers.
    pub numbers: Numbers,
}

/// A method: formulas, and its design if it is one.
struct Method {
    name: &'static str,
    symbols: Symbols,
    design: Option<fn(&Sizes) -> Value>,
}

const fn symbols(
    [cache, parameters, heads, rank_per_head, shared_latent_dim, total_effective_rank]: [&'static str; 6],
) -> Symbols {
    Symbols { cache, parameters, heads, rank_per_head, shared_latent_dim, total_effective_rank }
}

const METHODS: [Method; 8] = [
    Method { name: "FPBA", symbols: symbols(["2 H^2", "2 H^3", "H", "H", "H", "H^2"]), design: None },
    Method {
        name: "MHA",
        symbols: symbols(["2 H", "4 H^2", "n", "d", "H", "n d"]),
        design: Some(|s| json!({"kind": "mha", "heads": s.heads, "head_dim": s.head_dim})),
    },
    Method {
        name: "MQA",
        symbols: symbols(["2 d", "(2 + 2/n) H^2", "n", "d", "d", "n d"]),
        design: Some(|s| json!({"kind": "mqa", "heads": s.heads, "head_dim": s.head_dim})),
    },
    Method {
        name: "GQA",
        symbols: symbols(["2 g d", "(2 + 2 g/n) H^2", "n", "d", "g d", "n d"]),
        design: Some(
            |s| json!({"kind": "gqa", "heads": s.heads, "head_dim": s.head_dim, "kv_heads": s.kv_heads}),
        ),
    },
    Method {
        name: "MLA (paper)",
        symbols: symbols(["2 C + d_r", "H (3 C + d_r + m d) + m C (3 d + d_r)", "m", "d", "C", "m d"]),
        design: None,
    },
    Method {
        name: "MLA",
        symbols: symbols(["C + d_r", "H (2 C + d_r + m d) + m C (3 d + d_r)", "m", "d", "C", "m d"]),
        design: Some(|s| {
            json!({"kind": "mla", "heads": s.factored_heads, "q_lora_rank": s.shared, "kv_lora_rank": s.shared,
                "qk_nope_head_dim": s.head_dim, "qk_rope_head_dim": s.rope_dim, "v_head_dim": s.head_dim})
        }),
    },
    Method {
        name: "MFA",
        symbols: symbols(["2 C", "H (3 C + m C) + m C^2", "m", "C", "C", "m C"]),
        design: Some(|s| json!({"kind": "mfa", "heads": s.factored_heads, "head_dim": s.shared})),
    },
    Method {
        name: "MFA-KR",
        symbols: symbols(["C", "H (2 C + m C) + (m + 1) C^2", "m", "C", "C", "m C"]),
        design: Some(|s| json!({"kind": "mfa-kr", "heads": s.factored_heads, "head_dim": s.shared})),
    },
];

impl Sizes {
    /// The table's rows.
    ///
    /// # Errors
    /// Names the size that does not fit the others.
    pub fn rows(&self) -> Result<Vec<Row>, PlanError> {
        self.validate()?;
        METHODS.iter().map(|method| self.row(method)).collect()
    }

    fn validate(&self) -> Result<(), PlanError> {
        const MOST: u64 = 1 << 17;
        for (key, value) in [
            ("--hidden", self.hidden),
            ("--heads", self.heads),
            ("--head-dim", self.head_dim),
            ("--kv-heads", self.kv_heads),
            ("--shared", self.shared),
            ("--mla-heads", self.factored_heads),
            ("--rope-dim", self.rope_dim),
        ] {
            if !(1..=MOST).contains(&value) {
                return Err(PlanError::value(key, format!("1 to {MOST}"), value));
            }
        }
        if self.heads * self.head_dim != self.hidden {
            let expected =
                format!("--hidden / --heads = {}/{}: the table is for n d = H", self.hidden, self.heads);
            return Err(PlanError::value("--head-dim", expected, self.head_dim));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(PlanError::value(
                "--kv-heads",
                format!("a divisor of --heads = {}", self.heads),
                self.kv_heads,
            ));
        }
        Ok(())
    }

    fn row(&self, method: &Method) -> Result<Row, PlanError> {
        let numbers = match method.design {
            Some(design) => self.of_design(design(self))?,
            None => self.of_symbols(&method.symbols)?,
        };
        Ok(Row { method: method.name, symbols: method.symbols, numbers })
    }

    fn of_design(&self, design: Value) -> Result<Numbers, PlanError> {
        let attention: AttentionConfig = serde_json::from_value(design)
            .map_err(|error| PlanError::value("the design", "a valid attention", error))?;
        let attention = bare(attention);
        let shape = Shape::of(&attention, self.hidden as usize)?;
        Ok(Numbers {
            cache: shape.elements_per_token,
            parameters: shape.matrix_elements,
            heads: shape.capacity.heads as u64,
            rank_per_head: shape.capacity.rank_per_head as u64,
            shared_latent_dim: shape.capacity.shared_latent_dim as u64,
            total_effective_rank: shape.capacity.total_effective_rank() as u64,
        })
    }

    fn of_symbols(&self, formulas: &Symbols) -> Result<Numbers, PlanError> {
        let number = |formula| self.evaluate(formula).ok_or(PlanError::Overflow("the table's figures"));
        Ok(Numbers {
            cache: number(formulas.cache)?,
            parameters: number(formulas.parameters)?,
            heads: number(formulas.heads)?,
            rank_per_head: number(formulas.rank_per_head)?,
            shared_latent_dim: number(formulas.shared_latent_dim)?,
            total_effective_rank: number(formulas.total_effective_rank)?,
        })
    }

    fn evaluate(&self, formula: &str) -> Option<u64> {
        let value = |name: &str| match name {
            "H" => Some(self.hidden),
            "n" => Some(self.heads),
            "d" => Some(self.head_dim),
            "g" => Some(self.kv_heads),
            "C" => Some(self.shared),
            "m" => Some(self.factored_heads),
            "d_r" => Some(self.rope_dim),
            _ => None,
        };
        symbols::evaluate(formula, &value).map(|value| value.round() as u64)
    }

    fn describe(&self) -> String {
        format!(
            "H = {}, n = {}, d = {}, g = {}, C = {}, m = {}, d_r = {}",
            self.hidden,
            self.heads,
            self.head_dim,
            self.kv_heads,
            self.shared,
            self.factored_heads,
            self.rope_dim
        )
    }
}

/// Without positions: they hold no parameters, and the paper's widths need not be even.
fn bare(mut attention: AttentionConfig) -> AttentionConfig {
    use keyfold_model::position::Position::None;
    match &mut attention {
        AttentionConfig::Mha(config) => config.position = None,
        AttentionConfig::Mqa(config) => config.position = None,
        AttentionConfig::Gqa(config) => config.position = None,
        AttentionConfig::Mfa(config) => config.position = None,
        AttentionConfig::MfaKr(config) => config.position = None,
        AttentionConfig::Tpa(config) => config.position = None,
        AttentionConfig::Mla(_) => {}
    }
    attention
}

/// How a table is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Markdown.
    #[default]
    Markdown,
    /// A LaTeX `tabular`.
    Latex,
    /// JSON: sizes and rows.
    Json,
}

/// The table for `sizes`.
///
/// # Errors
/// As [`Sizes::rows`].
pub fn table(sizes: &Sizes, format: Format) -> Result<String, PlanError> {
    let rows = sizes.rows()?;
    let formula: fn(&str) -> String = match format {
        Format::Json => {
            let value = json!({ "sizes": sizes, "rows": rows });
            return Ok(format!("{value:#}"));
        }
        Format::Markdown => symbols::plain,
        Format::Latex => symbols::latex,
    };
    let mut grid = Grid::new(&[
        "method",
        "KV cache / token / layer",
        "",
        "parameters / layer",
        "",
        "heads",
        "",
        "rank / head",
        "",
        "SLSD",
        "",
        "TER",
        "",
    ]);
    for Row { method, symbols, numbers } in &rows {
        let cells = [
            (symbols.cache, numbers.cache),
            (symbols.parameters, numbers.parameters),
            (symbols.heads, numbers.heads),
            (symbols.rank_per_head, numbers.rank_per_head),
            (symbols.shared_latent_dim, numbers.shared_latent_dim),
            (symbols.total_effective_rank, numbers.total_effective_rank),
        ];
        let cells = cells.into_iter().flat_map(|(symbol, number)| [formula(symbol), grouped(number)]);
        grid.row([(*method).to_owned()].into_iter().chain(cells));
    }
    Ok(match format {
        Format::Latex => format!("% {}\n{}", sizes.describe(), grid.latex()),
        _ => format!("{}\n{}", grid.markdown(), sizes.describe()),
    })
}

#[cfg(test)]
mod tests;
