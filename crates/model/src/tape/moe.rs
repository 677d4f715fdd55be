//! The ops of a mixture of experts, each with its backward.
//!
//! Shapes: T tokens, E experts, k experts per token, H hidden.

use super::{Slot, Tape, Var};
use crate::weights::Param;
use keyfold_ops::{
    add, embedding,
    moe::{self, Assigned, Router},
};
use std::sync::Arc;

impl Tape {
    /// The experts of every token of `logits` [T, E]: their weights [T, k], and the tokens of each expert.
    pub fn route(
        &mut self,
        logits: &Var,
        bias: Option<&Param>,
        router: &Router,
    ) -> (Var, Vec<Arc<Assigned>>) {
        let (tokens, experts) = (logits.rows(), logits.cols());
        let mut weights = self.output(tokens, router.top_k);
        let mut chosen = vec![0; tokens * router.top_k];
        moe::route(router, logits.value(), bias.map(|bias| &bias.value), &mut chosen, &mut weights.tensor);
        let assigned = moe::assign(&chosen, router.top_k, experts).into_iter().map(Arc::new).collect();
        if self.recording {
            let (saved, from, to, router) =
                (self.save(logits.value()), Slot::of(logits), Slot::of(&weights), *router);
            self.record("route", move |g| {
                let Some(d_weights) = g.take(&to) else { return };
                let logits = saved.load(g.arena());
                let mut d_logits = g.fresh(&from);
                moe::route_backward(&router, &logits, &chosen, &d_weights, &mut d_logits);
                g.add(&from, d_logits);
            });
        }
        (weights, assigned)
    }

    /// Rows `rows` of `x` [T, H], each at most once.
    pub fn gather(&mut self, x: &Var, rows: &[u32]) -> Var {
        let mut out = self.output(rows.len(), x.cols());
        embedding::forward(rows, x.value(), &mut out.tensor);
        if self.recording {
            let (from, to, rows) = (Slot::of(x), Slot::of(&out), rows.to_vec());
            self.record("gather", move |g| {
                let Some(d_out) = g.take(&to) else { return };
                let (mut dx, accumulate) = g.target(&from);
                if !accumulate {
                    dx.fill_zero();
                }
                embedding::backward(&rows, &d_out, &mut dx);
            });
        }
        out
    }

    /// The weighted sum of the experts' answers: `answers` [tokens of the expert, H] each, `weights` [T, k]: [T, H].
    ///
    /// # Panics
    /// Without answers: every token has experts.
    pub fn scatter(&mut self, answers: Vec<(Var, Arc<Assigned>)>, weights: &Var) -> Var {
        let width = answers.first().map_or(0, |(answer, _)| answer.cols());
        let mut out = self.output(weights.rows(), width);
        out.tensor.fill_zero();
        for (answer, assigned) in &answers {
            moe::scatter(assigned, answer.value(), weights.value(), &mut out.tensor);
        }
        if self.recording {
            let saved: Vec<_> = answers
                .into_iter()
                .map(|(answer, assigned)| (self.save(answer.value()), Slot::of(&answer), assigned))
                .collect();
            // Weights are few: they stay as they are.
            let (weights, from, to) = (weights.value().clone(), Slot::of(weights), Slot::of(&out));
            self.record("scatter", move |g| {
                let Some(d_out) = g.take(&to) else { return };
                let (mut d_weights, _) = g.target(&from);
                d_weights.fill_zero();
                for (answer, slot, assigned) in saved {
                    let answer = answer.load(g.arena());
                    let (mut d_answer, _) = g.target(&slot);
                    moe::scatter_backward(
                        &assigned,
                        &answer,
                        &weights,
                        &d_out,
                        &mut d_answer,
                        &mut d_weights,
                    );
                }
            });
        }
        out
    }

    /// `a + b`.
    pub fn add(&mut self, a: &Var, b: &Var) -> Var {
        let mut out = self.output(a.rows(), a.cols());
        add::forward(a.value(), b.value(), &mut out.tensor);
        let (a, b, to) = (Slot::of(a), Slot::of(b), Slot::of(&out));
        self.record("add", move |g| {
            if let Some(d_out) = g.take(&to) {
                g.add(&a, d_out.clone());
                g.add(&b, d_out);
            }
        });
        out
    }
}
