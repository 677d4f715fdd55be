//! The definition, in double precision, over pages wherever they lie.

use super::{Batch, Cache};
use crate::{attention::Heads, fp8};
use keyfold_tensor::Tensor;
use rayon::prelude::*;

/// The rows of a plane as f64, perhaps sums of several with factors.
struct Plane {
    values: Vec<f32>,
    cols: usize,
    stride: usize,
    width: usize,
    factors: Option<Box<Plane>>,
    count: usize,
}

impl Plane {
    fn of(heads: Heads<'_>, factors: Option<Heads<'_>>, scales: Option<&Tensor>) -> Self {
        let rows = scales.map(|scales| fp8::Rows { values: heads.tensor, scales });
        let scaled = |rows: fp8::Rows<'_>| -> Vec<f32> {
            (0..rows.values.rows()).flat_map(|at| rows.row(at)).collect()
        };
        Self {
            factors: factors.map(|factors| Box::new(Self::of(factors, None, None))),
            count: heads.count,
            values: rows.map_or_else(|| heads.tensor.to_vec(), scaled),
            cols: heads.tensor.cols(),
            stride: heads.stride,
            width: heads.width,
        }
    }

    fn row(&self, row: usize, head: usize) -> Vec<f64> {
        let Some(factors) = &self.factors else { return self.part(row, head) };
        let mut sum = vec![0.0; self.width];
        for term in 0..self.count {
            let a = factors.part(row, term)[head] / self.count as f64;
            sum.iter_mut().zip(self.part(row, term)).for_each(|(sum, b)| *sum += a * b);
        }
        sum
    }

    fn part(&self, row: usize, head: usize) -> Vec<f64> {
        let start = row * self.cols + head * self.stride;
        self.values[start..start + self.width].iter().map(|x| f64::from(*x)).collect()
    }
}

/// See [`super::attend`].
pub(super) fn attend(
    q: &Tensor,
    cache: &Cache<'_>,
    batch: &Batch,
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
) {
    let shape = &batch.shape;
    // With factors every head has keys of its own.
    let kv_heads = if shape.factors.is_some() { shape.heads } else { shape.kv_heads };
    let group = shape.heads / kv_heads;
    let [of_keys, of_values] = cache.factors.map_or([None; 2], |factors| factors.map(Some));
    let keys = Plane::of(cache.k, of_keys, cache.scales);
    let values = cache.v.map(|v| Plane::of(v, of_values, cache.scales));
    let queries = q.to_vec();
    let slopes = cache.alibi.map(Tensor::to_vec);
    let slope = |head: usize| slopes.as_ref().map_or(0.0, |slopes| f64::from(slopes[head]));
    let mut outputs = vec![0.0; out.len()];
    let mut sums = vec![f32::NEG_INFINITY; q.rows() * shape.heads];
    for (sequence, &length) in batch.lengths.iter().enumerate() {
        let pages = batch.pages(sequence);
        let row_of = |key: usize| pages[key / shape.page] as usize * shape.page + key % shape.page;
        for kv_head in 0..kv_heads {
            let rows: Vec<(Vec<f64>, Vec<f64>)> = (0..length as usize)
                .into_par_iter()
                .map(|key| {
                    let mut k = keys.row(row_of(key), kv_head);
                    let v = match &values {
                        Some(values) => values.row(row_of(key), kv_head),
                        None => k[..shape.value_width].to_vec(),
                    };
                    if let Some(table) = cache.rotate {
                        rotate(&mut k, table.cos(key), table.sin(key));
                    }
                    (k, v)
                })
                .collect();
            // A query, its log-sum-exp and its output.
            let answer = |token: usize, head: usize| {
                let seen = (length as usize + token + 1).saturating_sub(shape.tokens).min(rows.len());
                let query = (sequence * shape.tokens + token) * shape.heads + head;
                let q = &queries[query * shape.width..][..shape.width];
                let first = seen.saturating_sub(shape.window.unwrap_or(seen));
                let scores: Vec<f64> = (first..seen)
                    .map(|key| {
                        let dot: f64 = rows[key].0.iter().zip(q).map(|(k, q)| k * f64::from(*q)).sum();
                        dot * f64::from(cache.scale) - slope(head) * (seen - 1 - key) as f64
                    })
                    .collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - top).exp()).sum();
                let mut output = vec![0.0; shape.value_width];
                for (score, (_, v)) in scores.iter().zip(&rows[first..]) {
                    let weight = (score - top).exp() / sum;
                    output.iter_mut().zip(v).for_each(|(output, v)| *output += weight * v);
                }
                let lse = if seen > 0 { (top + sum.ln()) as f32 } else { f32::NEG_INFINITY };
                (query, lse, output)
            };
            let asked: Vec<(usize, usize)> = (0..shape.tokens)
                .flat_map(|token| (kv_head * group..(kv_head + 1) * group).map(move |head| (token, head)))
                .collect();
            let answers: Vec<_> = asked.into_par_iter().map(|(token, head)| answer(token, head)).collect();
            for (query, lse, output) in answers {
                sums[query] = lse;
                let to = &mut outputs[query * shape.value_width..][..shape.value_width];
                to.iter_mut().zip(output).for_each(|(to, value)| *to = value as f32);
            }
        }
    }
    out.write(&outputs);
    if let Some(lse) = lse {
        lse.write(&sums);
    }
}

fn rotate(k: &mut [f64], cos: &[f32], sin: &[f32]) {
    let half = k.len() / 2;
    for (i, (cos, sin)) in cos.iter().zip(sin).enumerate() {
        let (cos, sin) = (f64::from(*cos), f64::from(*sin));
        let (a, b) = (k[i], k[i + half]);
        (k[i], k[i + half]) = (a * cos - b * sin, b * cos + a * sin);
    }
}
