//! Attention of whole sequences, forward and backward.

use super::twin::{Gaps, Twin, Twins};
use crate::attention::{self, Gradient, Heads, Shape};
use keyfold_core::DType;
use keyfold_tensor::Tensor;

/// Probabilities are rounded to bf16 on a GPU.
const LIMIT: f64 = 8e-3;

/// Sizes of a check.
#[derive(Clone, Copy)]
struct Case {
    batch: usize,
    seq: usize,
    heads: usize,
    kv_heads: usize,
    /// Of queries and keys.
    width: usize,
    value_width: usize,
    alibi: bool,
    /// Documents of about this many tokens.
    documents: Option<usize>,
    gaps: Gaps,
}

const BASE: Case = Case {
    batch: 2,
    seq: 65,
    heads: 2,
    kv_heads: 1,
    width: 64,
    value_width: 64,
    alibi: false,
    documents: None,
    gaps: Gaps::Aligned,
};

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (width, value_width) in
        [(64, 64), (96, 64), (128, 128), (192, 128), (192, 192), (256, 256), (8, 8), (40, 104)]
    {
        for (seq, heads, kv_heads) in [(1, 1, 1), (63, 3, 3), (65, 4, 2), (200, 4, 1), (385, 2, 1)] {
            cases.push(Case { seq, heads, kv_heads, width, value_width, ..BASE });
        }
        cases.push(Case { width, value_width, seq: 300, documents: Some(37), ..BASE });
    }
    // Wide heads: biases, many heads on one, sequences that end within a block's keys, documents within and across them.
    for (width, value_width) in [(192, 128), (256, 256)] {
        cases.push(Case { width, value_width, alibi: true, seq: 200, heads: 6, ..BASE });
        cases.push(Case { width, value_width, batch: 1, seq: 1100, heads: 12, documents: Some(170), ..BASE });
    }
    cases.push(Case { width: 136, value_width: 256, seq: 129, heads: 5, ..BASE });
    cases.push(Case { width: 256, value_width: 72, seq: 321, heads: 6, kv_heads: 2, ..BASE });
    cases.push(Case { width: 256, value_width: 256, seq: 70, gaps: Gaps::Odd, ..BASE });
    // What no kernel takes as it lies; biases; one sequence for a whole GPU; many short documents.
    cases.push(Case { width: 20, value_width: 12, gaps: Gaps::Odd, ..BASE });
    cases.push(Case { width: 128, value_width: 128, gaps: Gaps::Odd, ..BASE });
    cases.push(Case { alibi: true, seq: 130, heads: 8, ..BASE });
    cases.push(Case { alibi: true, documents: Some(5), seq: 257, heads: 8, ..BASE });
    cases.push(Case { batch: 1, seq: 1000, heads: 16, width: 128, value_width: 128, ..BASE });
    cases.push(Case { batch: 3, seq: 512, heads: 12, kv_heads: 12, documents: Some(90), ..BASE });
    cases
}

/// Slopes and document starts of a case.
fn extras(case: &Case) -> (Option<Vec<f32>>, Option<Vec<u32>>) {
    let slopes = case.alibi.then(|| (0..case.heads).map(|head| 0.5f32.powi(head as i32 + 1)).collect());
    let starts = case.documents.map(|length| {
        let start = |token: usize| {
            let (row, at) = (token / case.seq, token % case.seq);
            // Lengths differ from sequence to sequence.
            (at / (length + row) * (length + row)) as u32
        };
        (0..case.batch * case.seq).map(start).collect()
    });
    (slopes, starts)
}

pub(super) fn attention(twins: &mut Twins<'_>) {
    for case in cases() {
        for dtype in [DType::Bf16, DType::F32] {
            check(twins, &case, dtype);
        }
    }
}

fn check(twins: &mut Twins<'_>, case: &Case, dtype: DType) {
    let Case { batch, seq, heads, kv_heads, width, value_width, gaps, .. } = *case;
    let tokens = batch * seq;
    let (slopes, starts) = extras(case);
    let shape = Shape {
        batch,
        seq,
        scale: 1.5 / (width as f32).sqrt(),
        alibi: slopes.as_deref(),
        doc_starts: starts.as_deref(),
    };
    let what = format!(
        "{batch} x {seq}, {heads} on {kv_heads} heads of {width}, values {value_width}, {dtype}, alibi {}, documents {:?}, {gaps:?}",
        case.alibi, case.documents
    );
    let q = twins.random(tokens, heads * width, dtype, gaps);
    let k = twins.random(tokens, kv_heads * width, dtype, gaps);
    let v = twins.random(tokens, kv_heads * value_width, dtype, gaps);
    let d_out = twins.random(tokens, heads * value_width, dtype, gaps);
    let out = twins.empty(tokens, heads * value_width, dtype, gaps);
    let mut lse = twins.empty(batch * heads, seq, DType::F32, Gaps::None);
    fn packed(tensor: &Tensor, count: usize) -> Heads<'_> {
        Heads::packed(tensor, count)
    }
    fn all<'a>(
        of: impl Fn(&'a Twin) -> &'a Tensor,
        q: &'a Twin,
        k: &'a Twin,
        v: &'a Twin,
        heads: usize,
        kv: usize,
    ) -> [Heads<'a>; 3] {
        [packed(of(q), heads), packed(of(k), kv), packed(of(v), kv)]
    }
    let host = all(|twin| &twin.host, &q, &k, &v, heads, kv_heads);
    let device = all(|twin| &twin.device, &q, &k, &v, heads, kv_heads);
    attention::forward(host[0], host[1], host[2], &shape, packed(&out.host, heads), &mut lse.host);
    attention::forward(device[0], device[1], device[2], &shape, packed(&out.device, heads), &mut lse.device);
    twins.compare(format!("out, {what}"), &out, LIMIT);
    twins.compare(format!("lse, {what}"), &lse, LIMIT);

    let dq = twins.random(tokens, heads * width, dtype, gaps);
    let dk = twins.random(tokens, kv_heads * width, dtype, gaps);
    let dv = twins.random(tokens, kv_heads * value_width, dtype, gaps);
    for accumulate in [false, true] {
        for (of, inputs) in
            [((|twin| &twin.host) as fn(&Twin) -> &Tensor, host), (|twin| &twin.device, device)]
        {
            let [q, k, v] = inputs;
            let gradient = |twin, count| Gradient { heads: packed(of(twin), count), accumulate };
            attention::backward(
                q,
                k,
                v,
                packed(of(&out), heads),
                packed(of(&d_out), heads),
                of(&lse),
                &shape,
                gradient(&dq, heads),
                gradient(&dk, kv_heads),
                gradient(&dv, kv_heads),
            );
        }
        for (name, twin) in [("dq", &dq), ("dk", &dk), ("dv", &dv)] {
            // One key takes all the probability: its gradient is rounding alone.
            if seq > 1 || name == "dv" {
                twins.compare(format!("{name}, accumulate {accumulate}, {what}"), twin, 2.0 * LIMIT);
            }
        }
    }
}
