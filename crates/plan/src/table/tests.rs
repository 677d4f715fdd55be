use super::*;

/// Sizes of several shapes; m, n and all else differ.
fn shapes() -> Vec<Sizes> {
    vec![
        Sizes::default(),
        Sizes { hidden: 96, heads: 6, head_dim: 16, kv_heads: 3, shared: 20, factored_heads: 7, rope_dim: 8 },
        Sizes {
            hidden: 4096,
            heads: 32,
            head_dim: 128,
            kv_heads: 8,
            shared: 512,
            factored_heads: 5,
            rope_dim: 2,
        },
        Sizes {
            hidden: 7168,
            heads: 56,
            head_dim: 128,
            kv_heads: 1,
            shared: 384,
            factored_heads: 128,
            rope_dim: 64,
        },
    ]
}

#[test]
fn every_formula_of_a_design_gives_the_designs_number() {
    for sizes in shapes() {
        for method in METHODS.iter().filter(|method| method.design.is_some()) {
            let own = sizes.row(method).unwrap().numbers;
            assert_eq!(sizes.of_symbols(&method.symbols).unwrap(), own, "{}: {sizes:?}", method.name);
        }
    }
}

#[test]
fn the_papers_mla_has_one_more_latent_than_the_design() {
    for sizes in shapes() {
        let rows = sizes.rows().unwrap();
        let named = |name: &str| rows.iter().find(|row| row.method == name).unwrap().numbers;
        let (paper, design) = (named("MLA (paper)"), named("MLA"));
        assert_eq!(paper.cache, design.cache + sizes.shared);
        assert_eq!(paper.parameters, design.parameters + sizes.hidden * sizes.shared);
        let apart = Numbers { cache: design.cache, parameters: design.parameters, ..paper };
        assert_eq!(apart, design);
    }
}

#[test]
fn the_table_is_the_papers() {
    let text = table(&Sizes::default(), Format::Markdown).unwrap();
    for cell in ["| FPBA | 2H² | 8,388,608 | 2H³ |", "| MHA | 2H | 4,096 | 4H² | 16,777,216 |", "(2 + 2/n)H²"]
    {
        assert!(text.contains(cell), "{cell}: {text}");
    }
    assert!(text.contains("| MFA | 2C | 512 | H(3C + mC) + mC² |"), "{text}");
    assert!(text.contains("| MFA-KR | C | 256 |"), "{text}");
    let latex = table(&Sizes::default(), Format::Latex).unwrap();
    assert!(latex.contains("$2 C + d_{r}$ & 576") && latex.contains("\\begin{tabular}"), "{latex}");
    let json: Value = serde_json::from_str(&table(&Sizes::default(), Format::Json).unwrap()).unwrap();
    assert_eq!(json["rows"][6]["numbers"]["total_effective_rank"], 26 * 256);
    assert_eq!(json["rows"][6]["symbols"]["total_effective_rank"], "m C");
}

#[test]
fn sizes_that_do_not_fit_are_refused_by_option() {
    let good = Sizes::default();
    for (sizes, told) in [
        (Sizes { hidden: 0, ..good }, "--hidden is 0"),
        (Sizes { hidden: u64::MAX, ..good }, "--hidden"),
        (Sizes { heads: 17, ..good }, "--head-dim is 128: expected --hidden / --heads = 2048/17"),
        (Sizes { kv_heads: 5, ..good }, "--kv-heads is 5: expected a divisor of --heads = 16"),
        (Sizes { shared: 1 << 40, ..good }, "--shared"),
        (Sizes { factored_heads: 0, ..good }, "--mla-heads is 0"),
        (Sizes { rope_dim: 63, ..good }, "qk_rope_head_dim"),
        (Sizes { shared: 1 << 17, factored_heads: 1 << 17, ..good }, "overflow"),
    ] {
        let error = table(&sizes, Format::Json).unwrap_err().to_string();
        assert!(error.contains(told), "{sizes:?}: {error}");
    }
}
