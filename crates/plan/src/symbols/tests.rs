use super::*;
use crate::inspect::Shape;
use serde_json::json;

fn designs() -> Vec<AttentionConfig> {
    let mut all = Vec::new();
    for (m, d, extra) in [(4, 6, 10), (12, 16, 3), (6, 8, 40)] {
        for json in [
            json!({"kind": "mha", "heads": m, "head_dim": d}),
            json!({"kind": "mqa", "heads": m, "head_dim": d}),
            json!({"kind": "gqa", "heads": m, "head_dim": d, "kv_heads": 2}),
            json!({"kind": "mla", "heads": m, "kv_lora_rank": extra, "qk_nope_head_dim": d, "qk_rope_head_dim": 4,
                "v_head_dim": d + 1, "latent_norm": false}),
            json!({"kind": "mla", "heads": m, "q_lora_rank": 7, "kv_lora_rank": extra, "qk_nope_head_dim": d,
                "qk_rope_head_dim": 4, "v_head_dim": d + 1, "latent_norm": false}),
            json!({"kind": "mfa", "heads": m, "head_dim": d, "query_norm": false}),
            json!({"kind": "mfa", "heads": m, "head_dim": d, "query_rank": extra, "query_norm": false}),
            json!({"kind": "mfa-kr", "heads": m, "head_dim": d, "query_rank": extra, "query_norm": false}),
            json!({"kind": "mfa-kr", "heads": m, "head_dim": d, "reuse": "vanilla", "query_norm": false}),
            json!({"kind": "tpa", "heads": m, "head_dim": d, "query_rank": 5, "key_rank": 2, "value_rank": 3}),
        ] {
            all.push(serde_json::from_value(json).unwrap());
        }
    }
    all
}

#[test]
fn every_formula_gives_the_designs_own_number() {
    let kinds: std::collections::BTreeSet<_> = designs().iter().map(|design| design.kind()).collect();
    assert_eq!(kinds.len(), keyfold_model::attention::DESIGNS.len());
    for attention in designs() {
        let shape = Shape::of(&attention, 48).unwrap();
        let symbols = of(&attention);
        for (formula, number) in [
            (symbols.cache, shape.elements_per_token),
            (symbols.parameters, shape.matrix_elements),
            (symbols.heads, shape.capacity.heads as u64),
            (symbols.rank_per_head, shape.capacity.rank_per_head as u64),
            (symbols.shared_latent_dim, shape.capacity.shared_latent_dim as u64),
            (symbols.total_effective_rank, shape.capacity.total_effective_rank() as u64),
        ] {
            let value = evaluate(formula, &|name| value(&attention, 48, name));
            assert_eq!(value, Some(number as f64), "{formula} of {attention:?}");
        }
    }
}

#[test]
fn formulas_are_read_as_people_read_them() {
    let value = |name: &str| match name {
        "H" => Some(10),
        "n" => Some(4),
        "d_r" => Some(3),
        "big" => Some(1 << 50),
        _ => None,
    };
    let evaluate = |formula| evaluate(formula, &value);
    assert_eq!(evaluate("(2 + 2/n) H^2"), Some(250.0));
    assert_eq!(evaluate("2 H/n + d_r"), Some(8.0));
    assert_eq!(evaluate("H (n + 1) + n H^3"), Some(4050.0));
    for wrong in ["", "+", "2 +", "(2", "2)", "x", "H ^", "H ^x", "2 & 3", "big H", "n^", "H/"] {
        assert_eq!(evaluate(wrong), None, "{wrong}");
    }
    assert_eq!(plain("H (3 C + m C) + m C^2"), "H(3C + mC) + mC²");
    assert_eq!(plain("2 C + d_r"), "2 C + d_r");
    assert_eq!(latex("m d_r + r_kv^2"), "$m d_{r} + r_{kv}^2$");
}
