//! Attention in double precision, one query at a time.

use std::ops::Range;

/// Sizes and masks. Rows of `q` are `batch * seq` tokens, rows of `k` and `v` are `batch * (past + seq)`; heads are packed.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) batch: usize,
    pub(super) seq: usize,
    pub(super) past: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) width: usize,
    pub(super) value_width: usize,
    pub(super) scale: f64,
    pub(super) alibi: Option<Vec<f32>>,
    pub(super) starts: Option<Vec<u32>>,
}

/// One query of one head: the keys it sees and where everything lies.
struct Query {
    head: usize,
    token: usize,
    q: Range<usize>,
    o: Range<usize>,
    keys: Vec<usize>,
    position: usize,
}

impl Case {
    fn queries(&self) -> Vec<Query> {
        let mut queries = Vec::new();
        for batch in 0..self.batch {
            for head in 0..self.heads {
                for i in 0..self.seq {
                    let token = batch * self.seq + i;
                    let (q, o) = (token * self.heads + head, token * self.heads + head);
                    let first = self.starts.as_ref().map_or(0, |starts| starts[token] as usize);
                    queries.push(Query {
                        head,
                        token,
                        q: q * self.width..(q + 1) * self.width,
                        o: o * self.value_width..(o + 1) * self.value_width,
                        keys: (first..=self.past + i).map(|j| batch * (self.past + self.seq) + j).collect(),
                        position: batch * (self.past + self.seq) + self.past + i,
                    });
                }
            }
        }
        queries
    }

    fn key(&self, query: &Query, row: usize) -> Range<usize> {
        let start = (row * self.kv_heads + query.head / (self.heads / self.kv_heads)) * self.width;
        start..start + self.width
    }

    fn value(&self, query: &Query, row: usize) -> Range<usize> {
        let start = (row * self.kv_heads + query.head / (self.heads / self.kv_heads)) * self.value_width;
        start..start + self.value_width
    }

    /// Probabilities of the keys `query` sees, and the log-sum-exp of their scores.
    fn probabilities(&self, query: &Query, q: &[f64], k: &[f64]) -> (Vec<f64>, f64) {
        let slope = self.alibi.as_ref().map_or(0.0, |slopes| f64::from(slopes[query.head]));
        let scores = query.keys.iter().map(|row| {
            self.scale * dot(&q[query.q.clone()], &k[self.key(query, *row)])
                - slope * (query.position - row) as f64
        });
        let scores: Vec<f64> = scores.collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
        (scores.iter().map(|s| (s - lse).exp()).collect(), lse)
    }

    /// Output and, as `[batch * heads, seq]`, log-sum-exp.
    pub(super) fn forward(&self, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let mut out = vec![0.0; self.batch * self.seq * self.heads * self.value_width];
        let mut lse = vec![0.0; self.batch * self.heads * self.seq];
        for query in self.queries() {
            let (p, sum) = self.probabilities(&query, q, k);
            let (batch, i) = (query.token / self.seq, query.token % self.seq);
            lse[(batch * self.heads + query.head) * self.seq + i] = sum;
            for (row, p) in query.keys.iter().zip(p) {
                add(&mut out[query.o.clone()], p, &v[self.value(&query, *row)]);
            }
        }
        (out, lse)
    }

    /// Gradients of q, k and v.
    pub(super) fn backward(&self, q: &[f64], k: &[f64], v: &[f64], d_out: &[f64]) -> [Vec<f64>; 3] {
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        for query in self.queries() {
            let (p, _) = self.probabilities(&query, q, k);
            let d_out = &d_out[query.o.clone()];
            let dp: Vec<f64> =
                query.keys.iter().map(|row| dot(d_out, &v[self.value(&query, *row)])).collect();
            let delta = dot(&p, &dp);
            for ((row, p), dp) in query.keys.iter().zip(&p).zip(&dp) {
                let ds = p * (dp - delta) * self.scale;
                add(&mut dq[query.q.clone()], ds, &k[self.key(&query, *row)]);
                add(&mut dk[self.key(&query, *row)], ds, &q[query.q.clone()]);
                add(&mut dv[self.value(&query, *row)], *p, d_out);
            }
        }
        [dq, dk, dv]
    }
}

/// Keys or values `[tokens, heads * width]` from factors a `[tokens, rank * heads]` and b `[tokens, rank * width]`.
pub(super) fn compose(a: &[f64], b: &[f64], rank: usize, heads: usize, width: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for (a, b) in a.chunks_exact(rank * heads).zip(b.chunks_exact(rank * width)) {
        for head in 0..heads {
            for c in 0..width {
                out.push(
                    (0..rank).map(|r| a[r * heads + head] * b[r * width + c]).sum::<f64>() / rank as f64,
                );
            }
        }
    }
    out
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], factor: f64, values: &[f64]) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to += factor * value);
}
