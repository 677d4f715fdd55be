//! The ops of a decoder, each with its backward.
//!
//! Shapes: T tokens (batch * seq rows), H hidden, N heads, d head width, V vocabulary.

use super::{Saved, Slot, Tape, Var, gradients::Parent};
use crate::{
    sequences::Sequences,
    weights::{Param, Projection},
};
use keyfold_core::DType;
use keyfold_ops::{
    add,
    attention::{self, Gradient, Heads},
    cross_entropy::{self, Pending},
    embedding,
    glu::{self, Activation},
    indices::Indices,
    linear, mla_keys, rms_norm,
    rope::{self, Heads as RopeHeads, Positions, RopeTable},
    tpa,
    value_map::{self, GateGradient},
};
use keyfold_tensor::{Device, Tensor};
use std::sync::Arc;

/// Heads inside a value: channel c of head h of token t is at column `h * stride + c` of row t.
#[derive(Clone, Copy, Debug)]
pub struct HeadVar<'a> {
    /// The value.
    pub var: &'a Var,
    /// Number of heads.
    pub count: usize,
    /// Channels per head.
    pub width: usize,
    /// Columns from one head to the next.
    pub stride: usize,
}

impl<'a> HeadVar<'a> {
    /// `count` adjacent heads that fill the rows of `var`.
    pub fn packed(var: &'a Var, count: usize) -> Self {
        let width = var.cols() / count;
        Self { var, count, width, stride: width }
    }

    fn saved(&self, tape: &Tape) -> SavedHeads {
        SavedHeads {
            value: tape.save(self.var.value()),
            count: self.count,
            width: self.width,
            stride: self.stride,
        }
    }

    fn heads(&self) -> Heads<'a> {
        Heads { tensor: self.var.value(), count: self.count, width: self.width, stride: self.stride }
    }
}

struct SavedHeads {
    value: Saved,
    count: usize,
    width: usize,
    stride: usize,
}

impl SavedHeads {
    fn of<'a>(&self, tensor: &'a Tensor) -> Heads<'a> {
        Heads { tensor, count: self.count, width: self.width, stride: self.stride }
    }
}

/// Scores of an attention: scale and position bias.
#[derive(Clone, Debug)]
pub struct AttentionArgs {
    /// Factor on every score.
    pub scale: f32,
    /// ALiBi slope of each query head.
    pub alibi: Option<Arc<[f32]>>,
    /// Tokens that a token sees, itself included; all before it by default.
    pub window: Option<usize>,
}

impl Tape {
    /// Rows of `table` `[V, H]` for `ids` `[T]`: `[T, H]`.
    pub fn embedding(&mut self, ids: &[u32], table: &Param) -> Var {
        let mut out = self.output(ids.len(), table.value.cols());
        embedding::forward(ids, &table.value, &mut out.tensor);
        if let (true, Some(grad)) = (self.recording, &table.grad) {
            let (slot, mut grad, ids) = (Slot::of(&out), grad.clone(), ids.to_vec());
            self.record("embedding", move |g| {
                if let Some(d_out) = g.take(&slot) {
                    embedding::backward(&ids, &d_out, &mut grad);
                }
            });
        }
        out
    }

    /// As [`Tape::embedding`], with ids where the table is; for a tape that only computes.
    pub fn embedding_of(&mut self, ids: &Indices, table: &Param) -> Var {
        let mut out = self.output(ids.len(), table.value.cols());
        embedding::gather(ids, &table.value, &mut out.tensor);
        out
    }

    /// `x` [T, in] times `w` [out, in] transposed: [T, out].
    pub fn linear(&mut self, x: &Var, w: &Param) -> Var {
        let mut fused = self.activations(x.rows(), w.value.rows());
        if self.of_norm(x, &w.value, None, &mut fused) {
            return self.var_of(fused);
        }
        let mut out = self.var(fused, None);
        linear::forward(x.value(), &w.value, None, &mut out.tensor, false);
        if self.recording {
            let (saved, from, to, w) = (self.save(x.value()), Slot::of(x), Slot::of(&out), w.clone());
            self.record("linear", move |g| {
                let Some(d_out) = g.take(&to) else { return };
                if let Some(mut grad) = w.grad {
                    linear::backward_weight(&d_out, &saved.load(g.arena()), &mut grad, true);
                }
                let (mut dx, accumulate) = g.target(&from);
                linear::backward_input(&d_out, &w.value, &mut dx, accumulate);
            });
        }
        out
    }

    /// `x` [T, in] through all matrices of `w`, outputs side by side: [T, sum of out].
    pub fn project(&mut self, x: &Var, w: &Projection) -> Var {
        let mut out = self.activations(x.rows(), w.outputs());
        let parts: Vec<&Tensor> = w.parts.iter().map(|part| &part.value).collect();
        let bias = w.bias.as_ref().map(|bias| &bias.value);
        let mut column = 0;
        let fused = parts.iter().all(|part| {
            let mut columns = out.columns(column, part.rows());
            let bias = bias.map(|bias| bias.columns(column, part.rows()));
            column += part.rows();
            self.of_norm(x, part, bias.as_ref(), &mut columns)
        });
        if !fused {
            self.settle();
            linear::forward_joined(x.value(), &parts, bias, &mut out);
        }
        let out = self.var_of(out);
        if self.recording {
            let (saved, from, to, w) = (self.save(x.value()), Slot::of(x), Slot::of(&out), w.clone());
            self.record("project", move |g| {
                let Some(d_out) = g.take(&to) else { return };
                if let Some(mut grad) = w.bias.and_then(|bias| bias.grad) {
                    linear::backward_bias(&d_out, &mut grad, true);
                }
                let x = saved.load(g.arena());
                let mut column = 0;
                for part in w.parts {
                    let width = part.value.rows();
                    let d_out = d_out.columns(column, width);
                    if let Some(mut grad) = part.grad {
                        linear::backward_weight(&d_out, &x, &mut grad, true);
                    }
                    let (mut dx, accumulate) = g.target(&from);
                    linear::backward_input(&d_out, &part.value, &mut dx, accumulate);
                    column += width;
                }
            });
        }
        out
    }

    /// `factor * x`.
    pub fn scale(&mut self, x: &Var, factor: f32) -> Var {
        let mut out = self.output(x.rows(), x.cols());
        add::scale(x.value(), factor, &mut out.tensor, false);
        let (from, to) = (Slot::of(x), Slot::of(&out));
        self.record("scale", move |g| {
            let Some(d_out) = g.take(&to) else { return };
            let (mut dx, accumulate) = g.target(&from);
            add::scale(&d_out, factor, &mut dx, accumulate);
        });
        out
    }

    /// RMSNorm of `x` [T, H] with gain `weight` [1, H].
    pub fn rms_norm(&mut self, x: &Var, weight: &Param, eps: f32) -> Var {
        let mut out = self.output(x.rows(), x.cols());
        let groups = x.cols() / weight.value.cols();
        let mut rstd = self.arena.tensor(x.rows(), groups, DType::F32);
        rms_norm::forward(x.value(), None, &weight.value, eps, None, &mut out.tensor, &mut rstd);
        if self.recording {
            let (saved, from, to, weight) =
                (self.save(x.value()), Slot::of(x), Slot::of(&out), weight.clone());
            self.record("rms_norm", move |g| {
                let Some(d_out) = g.take(&to) else { return };
                let (mut dx, accumulate) = g.target(&from);
                norm_backward(&d_out, &saved.load(g.arena()), &weight, &rstd, &mut dx, accumulate);
            });
        }
        out
    }

    /// The residual sum `x + delta` and its RMSNorm, in one pass; `x` itself without a `delta`.
    pub fn add_norm(&mut self, x: Var, delta: Option<Var>, weight: &Param, eps: f32) -> (Var, Var) {
        let delta = delta.filter(|delta| !self.add_product(&x, delta));
        let Some(delta) = delta else {
            let later = self.norm_later(x.value(), weight, eps);
            let out = later.unwrap_or_else(|| self.rms_norm(&x, weight, eps));
            return (x, out);
        };
        let (rows, cols) = (x.rows(), x.cols());
        let mut sum = self.output(rows, cols);
        let mut out = self.output(rows, cols);
        let mut rstd = self.arena.tensor(rows, 1, DType::F32);
        rms_norm::forward(
            x.value(),
            Some(delta.value()),
            &weight.value,
            eps,
            Some(&mut sum.tensor),
            &mut out.tensor,
            &mut rstd,
        );
        if self.recording {
            let saved = self.save(&sum.tensor);
            let (x, delta, to_sum, to_out) = (Slot::of(&x), Slot::of(&delta), Slot::of(&sum), Slot::of(&out));
            let weight = weight.clone();
            self.record("add_norm", move |g| {
                if let Some(d_out) = g.take(&to_out) {
                    let (mut d_sum, accumulate) = g.target(&to_sum);
                    norm_backward(&d_out, &saved.load(g.arena()), &weight, &rstd, &mut d_sum, accumulate);
                }
                if let Some(d_sum) = g.take(&to_sum) {
                    g.add(&x, d_sum.clone());
                    g.add(&delta, d_sum);
                }
            });
        }
        (sum, out)
    }

    /// Column views of `x` of the given widths, which add up to its columns. `x` is not used otherwise.
    pub fn split<const N: usize>(&mut self, x: Var, widths: [usize; N]) -> [Var; N] {
        let starts = starts(widths);
        self.views(x, std::array::from_fn(|i| (starts[i], widths[i])))
    }

    /// Views of the parts of `heads` heads whose channels are laid out as `widths`, head after head.
    /// In each part head h begins at column `h * (sum of widths)`. `x` is not used otherwise.
    pub fn split_heads<const N: usize>(&mut self, x: Var, heads: usize, widths: [usize; N]) -> [Var; N] {
        let (starts, stride) = (starts(widths), widths.iter().sum::<usize>());
        self.views(x, std::array::from_fn(|i| (starts[i], (heads - 1) * stride + widths[i])))
    }

    fn views<const N: usize>(&mut self, x: Var, spans: [(usize, usize); N]) -> [Var; N] {
        let slot = Slot::of(&x);
        let parts = spans
            .map(|(column, width)| self.var(x.value().columns(column, width), Some(Parent { slot, column })));
        let slots: Vec<Slot> = parts.iter().map(Slot::of).collect();
        self.record("split", move |g| g.join(&slots));
        parts
    }

    /// The contiguous rows of `x` as `rows` x `cols`.
    pub fn reshape(&mut self, x: &Var, rows: usize, cols: usize) -> Var {
        let out = self.var(x.value().reshape(rows, cols), None);
        let (from, to) = (Slot::of(x), Slot::of(&out));
        self.record("reshape", move |g| {
            if let Some(d_out) = g.take(&to) {
                g.add(&from, d_out.reshape(from.rows, from.cols));
            }
        });
        out
    }

    /// Rotates heads of `x` in place by each row's position; nothing may have used `x` before.
    pub fn rope_in_place(
        &mut self,
        x: &Var,
        heads: RopeHeads,
        table: &Arc<RopeTable>,
        sequences: &Sequences,
    ) {
        let positions = Positions::Rows { seq: sequences.seq };
        rope::apply(&mut x.value().clone(), heads, table, positions, false);
        let (slot, table, seq) = (Slot::of(x), table.clone(), sequences.seq);
        self.watch_value(x.value());
        self.record("rope_in_place", move |g| {
            if let Some(mut dx) = g.peek(&slot) {
                rope::apply(&mut dx, heads, &table, Positions::Rows { seq }, true);
            }
        });
    }

    /// A rotated copy of `x`; `inverse` rotates back.
    pub fn rope(
        &mut self,
        x: &Var,
        heads: RopeHeads,
        table: &Arc<RopeTable>,
        sequences: &Sequences,
        inverse: bool,
    ) -> Var {
        let mut out = self.output(x.rows(), x.cols());
        keyfold_ops::cast::copy(x.value(), &mut out.tensor);
        let seq = sequences.seq;
        rope::apply(&mut out.tensor, heads, table, Positions::Rows { seq }, inverse);
        let (from, to, table) = (Slot::of(x), Slot::of(&out), table.clone());
        self.record("rope", move |g| {
            if let Some(mut d_out) = g.take(&to) {
                rope::apply(&mut d_out, heads, &table, Positions::Rows { seq }, !inverse);
                g.add(&from, d_out);
            }
        });
        out
    }

    /// Causal attention of `q` (N heads of d) over `k` (heads of d) and `v` (heads of d_v): [T, N * d_v].
    pub fn attention(
        &mut self,
        q: HeadVar<'_>,
        k: HeadVar<'_>,
        v: HeadVar<'_>,
        args: &AttentionArgs,
        sequences: &Sequences,
    ) -> Var {
        let out = self.output(q.var.rows(), q.count * v.width);
        let mut lse = self.arena.tensor(sequences.batch * q.count, sequences.seq, DType::F32);
        let starts = visible_starts(args, sequences);
        let shape = attention_shape(args, sequences, starts.as_deref());
        let packed = |tensor| Heads { tensor, count: q.count, width: v.width, stride: v.width };
        attention::forward(q.heads(), k.heads(), v.heads(), &shape, packed(&out.tensor), &mut lse);
        if self.recording {
            let (q_slot, k_slot, v_slot, to) =
                (Slot::of(q.var), Slot::of(k.var), Slot::of(v.var), Slot::of(&out));
            let (sq, sk, sv) = (q.saved(self), k.saved(self), v.saved(self));
            let (s_out, args, sequences) = (self.save(&out.tensor), args.clone(), sequences.clone());
            self.record("attention", move |g| {
                let Some(d_out) = g.take(&to) else { return };
                let arena = g.arena().clone();
                let [q, k, v] = [&sq, &sk, &sv].map(|saved| saved.value.load(&arena));
                let out = s_out.load(&arena);
                let (dq, dq_add) = g.target(&q_slot);
                let (dk, dk_add) = g.target(&k_slot);
                // When key and value are one, this is the key's gradient again, to be added to.
                let (dv, dv_add) = g.target(&v_slot);
                let packed = |tensor| Heads { tensor, count: sq.count, width: sv.width, stride: sv.width };
                attention::backward(
                    sq.of(&q),
                    sk.of(&k),
                    sv.of(&v),
                    packed(&out),
                    packed(&d_out),
                    &lse,
                    &attention_shape(&args, &sequences, starts.as_deref()),
                    Gradient { heads: sq.of(&dq), accumulate: dq_add },
                    Gradient { heads: sk.of(&dk), accumulate: dk_add },
                    Gradient { heads: sv.of(&dv), accumulate: dv_add },
                );
            });
        }
        out
    }

    /// `activation(gate) * up` of rows [gate | up] [T, 2F]: [T, F].
    pub fn glu(&mut self, activation: Activation, gate_up: &Var) -> Var {
        if let Some(out) = self.gate_product(activation, gate_up) {
            return out;
        }
        let mut out = self.output(gate_up.rows(), gate_up.cols() / 2);
        glu::forward(activation, gate_up.value(), &mut out.tensor);
        if self.recording {
            let (saved, from, to) = (self.save(gate_up.value()), Slot::of(gate_up), Slot::of(&out));
            self.record("glu", move |g| {
                let Some(d_out) = g.take(&to) else { return };
                // The activation has this one use, so its gradient may take its place.
                let mut d_gate_up = saved.load(g.arena());
                glu::backward(activation, &d_gate_up.clone(), &d_out, &mut d_gate_up);
                drop(saved);
                g.add(&from, d_gate_up);
            });
        }
        out
    }

    /// A whole gated MLP of `x` [T, in] where nothing is recorded: [T, out of `down`].
    pub fn mlp(&mut self, activation: Activation, x: &Var, gate_up: &Projection, down: &Param) -> Var {
        if self.recording || self.arena.device() != Device::Cpu {
            let gate_up = self.project_later(x, gate_up);
            let activated = self.glu(activation, &gate_up);
            drop(gate_up);
            return self.linear_later(&activated, down);
        }
        let mut out = self.output(x.rows(), down.value.rows());
        let parts: Vec<&Tensor> = gate_up.parts.iter().map(|part| &part.value).collect();
        glu::mlp(activation, x.value(), &parts, &down.value, &mut out.tensor);
        out
    }

    /// MFA-KR's values from keys `k` [T, C] and `n` = N k, which is not used otherwise: `k + alpha * n`, or `k + n` without `alpha` [1, C].
    pub fn value_map(&mut self, k: &Var, n: &Var, alpha: Option<&Param>) -> Var {
        let mut out = self.output(n.rows(), n.cols());
        value_map::forward(k.value(), n.value(), alpha.map(|alpha| &alpha.value), &mut out.tensor);
        if self.recording {
            let (k, from, to) = (Slot::of(k), Slot::of(n), Slot::of(&out));
            let (n, alpha) = (self.save(n.value()), alpha.cloned());
            self.record("value_map", move |g| {
                let Some(d_out) = g.take(&to) else { return };
                let (mut dk, accumulate) = g.target(&k);
                let (mut dn, _) = g.target(&from);
                let n = n.load(g.arena());
                let mut gate = alpha.and_then(|alpha| Some((alpha.value, alpha.grad?)));
                let gate = gate.as_mut().map(|(alpha, d_alpha)| GateGradient { n: &n, alpha, d_alpha });
                value_map::backward(&d_out, gate, &mut dk, accumulate, &mut dn);
            });
        }
        out
    }

    /// MLA's keys: per head its own `nope` channels, which are not used otherwise, then the channels of `pe` [T, p] shared by all heads.
    pub fn mla_keys(&mut self, nope: HeadVar<'_>, pe: &Var) -> Var {
        let mut out = self.output(pe.rows(), nope.count * (nope.width + pe.cols()));
        let (count, stride) = (nope.count, nope.stride);
        mla_keys::forward(nope.var.value(), stride, pe.value(), count, &mut out.tensor);
        let (from, from_pe, to) = (Slot::of(nope.var), Slot::of(pe), Slot::of(&out));
        self.record("mla_keys", move |g| {
            let Some(d_out) = g.take(&to) else { return };
            let (mut d_nope, _) = g.target(&from);
            let (mut d_pe, accumulate) = g.target(&from_pe);
            mla_keys::backward(&d_out, count, &mut d_nope, stride, &mut d_pe, accumulate);
        });
        out
    }

    /// TPA's contraction of factors `a` [T, R * N] and `b` [T, R * d], which are not used otherwise: per head the mean
    /// over R of a * b, [T, N * d].
    pub fn tpa(&mut self, a: &Var, b: &Var, heads: usize, rank: usize) -> Var {
        let mut out = self.output(a.rows(), heads * (b.cols() / rank));
        tpa::combine(a.value(), b.value(), heads, &mut out.tensor);
        if self.recording {
            let (from_a, from_b, to) = (Slot::of(a), Slot::of(b), Slot::of(&out));
            let (a, b) = (self.save(a.value()), self.save(b.value()));
            self.record("tpa", move |g| {
                let Some(d_out) = g.take(&to) else { return };
                let (a, b) = (a.load(g.arena()), b.load(g.arena()));
                let ((mut da, _), (mut db, _)) = (g.target(&from_a), g.target(&from_b));
                tpa::backward(&d_out, &a, &b, heads, &mut da, &mut db, false);
            });
        }
        out
    }

    /// Cross-entropy of `targets` `[T]` under logits `x` `[T, H]` times `w` `[V, H]` transposed; the logits never exist as a
    /// whole. A recording tape adds `scale` times the gradient of the loss's *sum*: `scale` = 1 / tokens gives the mean.
    ///
    /// Targets of `u32::MAX` are left out.
    pub fn linear_cross_entropy(&mut self, x: &Var, w: &Param, targets: &[u32], scale: f32) -> Pending {
        let Some(grad) = w.grad.clone().filter(|_| self.recording) else {
            return cross_entropy::evaluate(x.value(), &w.value, targets, None, None, None).into();
        };
        let dtype = x.value().dtype();
        let (mut dx, mut dw) = (self.arena.tensor(x.rows(), x.cols(), dtype), grad);
        let loss =
            cross_entropy::forward_backward(x.value(), &w.value, targets, None, scale, &mut dx, &mut dw);
        let slot = Slot::of(x);
        self.watch_value(&dx);
        self.record("linear_cross_entropy", move |g| g.add(&slot, dx));
        loss
    }
}

/// Where each of adjacent spans of the given widths begins.
fn starts<const N: usize>(widths: [usize; N]) -> [usize; N] {
    let mut next = 0;
    widths.map(|width| {
        next += width;
        next - width
    })
}

/// The first key each token sees, within its sequence; `None` if that is everywhere the first.
fn visible_starts(args: &AttentionArgs, sequences: &Sequences) -> Option<Arc<[u32]>> {
    match args.window.filter(|window| *window < sequences.seq) {
        None => sequences.doc_starts.clone(),
        Some(window) => {
            let docs = sequences.doc_starts.as_deref();
            Some(attention::window_starts(docs, sequences.tokens(), sequences.seq, window).into())
        }
    }
}

fn attention_shape<'a>(
    args: &'a AttentionArgs,
    sequences: &Sequences,
    starts: Option<&'a [u32]>,
) -> attention::Shape<'a> {
    attention::Shape {
        batch: sequences.batch,
        seq: sequences.seq,
        scale: args.scale,
        alibi: args.alibi.as_deref(),
        doc_starts: starts,
    }
}

fn norm_backward(
    d_out: &Tensor,
    x: &Tensor,
    weight: &Param,
    rstd: &Tensor,
    dx: &mut Tensor,
    accumulate: bool,
) {
    let Some(mut d_weight) = weight.grad.clone() else { return };
    rms_norm::backward(d_out, x, &weight.value, rstd, dx, accumulate, &mut d_weight);
}
