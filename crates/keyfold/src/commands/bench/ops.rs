//! `keyfold bench ops`: where the time of a training step goes.

use super::print;
use keyfold_core::DType;
use keyfold_ops::glu::{self, Activation};
use keyfold_ops::{adamw, attention, cross_entropy, linear, rms_norm, rope};
use keyfold_tensor::{Arena, Tensor};
use serde::Serialize;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Sequences.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 256)]
    seq: usize,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 256)]
    width: usize,
    /// Token ids.
    #[arg(long, default_value_t = 4096)]
    vocab: usize,
    /// Repetitions to take the median of.
    #[arg(long, default_value_t = 15)]
    repeats: usize,
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    op: String,
    shape: String,
    us: f64,
    gflop_s: Option<f64>,
}

struct Bench<'a> {
    args: &'a Args,
    arena: Arena,
    rows: Vec<Row>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.batch > 0 && args.seq > 0 && args.width >= 64 && args.width.is_multiple_of(64),
        "--batch, --seq: at least 1; --width: a multiple of 64"
    );
    anyhow::ensure!(args.vocab > 1 && args.repeats > 0, "--vocab: at least 2; --repeats: at least 1");
    let mut bench = Bench { args, arena: Arena::new(), rows: Vec::new() };
    bench.linears();
    bench.attentions();
    bench.fused();
    print(&bench.rows, args.json, |row| {
        let rate = row.gflop_s.map_or_else(String::new, |rate| format!("{rate:8.0} GFLOP/s"));
        format!("{:28} {:26} {:10.0} us {rate}", row.op, row.shape, row.us)
    })
}

impl Bench<'_> {
    fn tensor(&self, rows: usize, cols: usize) -> Tensor {
        let mut tensor = self.arena.tensor(rows, cols, DType::F32);
        let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919) % 1009) as f32 / 1009.0 - 0.5).collect();
        tensor.write(&values);
        tensor
    }

    fn time(&mut self, op: &str, shape: String, flops: Option<f64>, mut work: impl FnMut()) {
        work();
        let mut times: Vec<f64> = (0..self.args.repeats)
            .map(|_| {
                let start = Instant::now();
                work();
                start.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let seconds = times[times.len() / 2];
        let gflop_s = flops.map(|flops| flops / seconds / 1e9);
        self.rows.push(Row { op: op.to_owned(), shape, us: 1e6 * seconds, gflop_s });
    }

    fn linears(&mut self) {
        let (tokens, width) = (self.args.batch * self.args.seq, self.args.width);
        let mlp = width * 8 / 3 / 64 * 64;
        for (input, out) in [(width, width), (width, 3 * width), (width, 2 * mlp), (mlp, width)] {
            let (x, mut y, mut w) =
                (self.tensor(tokens, input), self.tensor(tokens, out), self.tensor(out, input));
            let mut dx = self.tensor(tokens, input);
            let (shape, flops) =
                (format!("{tokens} x {input} -> {out}"), 2.0 * (tokens * input * out) as f64);
            self.time("linear forward", shape.clone(), Some(flops), || {
                linear::forward(&x, &w, None, &mut y, false)
            });
            self.time("linear backward input", shape.clone(), Some(flops), || {
                linear::backward_input(&y, &w, &mut dx, false);
            });
            self.time("linear backward weight", shape, Some(flops), || {
                linear::backward_weight(&y, &x, &mut w, true);
            });
        }
    }

    fn attentions(&mut self) {
        let (batch, seq) = (self.args.batch, self.args.seq);
        for (heads, kv, dim) in [(4, 4, 64), (8, 1, 128), (4, 1, 256)] {
            let (q, k, v) = (
                self.tensor(batch * seq, heads * dim),
                self.tensor(batch * seq, kv * dim),
                self.tensor(batch * seq, kv * dim),
            );
            let (out, d_out) = (self.tensor(batch * seq, heads * dim), self.tensor(batch * seq, heads * dim));
            let (dq, dk, dv) = (
                self.tensor(batch * seq, heads * dim),
                self.tensor(batch * seq, kv * dim),
                self.tensor(batch * seq, kv * dim),
            );
            let mut lse = self.tensor(batch * heads, seq);
            let options = attention::Shape {
                batch,
                seq,
                scale: (dim as f32).powf(-0.5),
                alibi: None,
                doc_starts: None,
            };
            let packed = attention::Heads::packed;
            let [q, out, d_out, dq] = [&q, &out, &d_out, &dq].map(|tensor| packed(tensor, heads));
            let [k, v, dk, dv] = [&k, &v, &dk, &dv].map(|tensor| packed(tensor, kv));
            let shape = format!("{batch} x {seq}, {heads}/{kv} x {dim}");
            let forward = 2.0 * (batch * heads * seq * (seq + 1) * dim) as f64;
            self.time("attention forward", shape.clone(), Some(forward), || {
                attention::forward(q, k, v, &options, out, &mut lse);
            });
            self.time("attention backward", shape, Some(2.5 * forward), || {
                let to = |heads| attention::Gradient { heads, accumulate: false };
                attention::backward(q, k, v, out, d_out, &lse, &options, to(dq), to(dk), to(dv));
            });
        }
    }

    fn fused(&mut self) {
        let (tokens, width) = (self.args.batch * self.args.seq, self.args.width);
        let mlp = width * 8 / 3 / 64 * 64;
        let shape = format!("{tokens} x {width}");
        let (x, delta, gain) =
            (self.tensor(tokens, width), self.tensor(tokens, width), self.tensor(1, width));
        let (mut sum, mut out, mut rstd) =
            (self.tensor(tokens, width), self.tensor(tokens, width), self.tensor(tokens, 1));
        self.time("rms_norm + residual", shape.clone(), None, || {
            rms_norm::forward(&x, Some(&delta), &gain, 1e-5, Some(&mut sum), &mut out, &mut rstd);
        });
        let (mut dx, mut d_gain) = (self.tensor(tokens, width), self.tensor(1, width));
        self.time("rms_norm backward", shape.clone(), None, || {
            rms_norm::backward(&out, &x, &gain, &rstd, &mut dx, false, &mut d_gain);
        });
        let table = rope::RopeTable::new(64, 10_000.0, self.args.seq);
        let (heads, at) =
            (rope::Heads::adjacent(width / 64, 64), rope::Positions::Rows { seq: self.args.seq });
        self.time("rope", shape.clone(), None, || rope::apply(&mut dx, heads, &table, at, false));
        let (gate_up, mut activated) = (self.tensor(tokens, 2 * mlp), self.tensor(tokens, mlp));
        let mut d_gate_up = self.tensor(tokens, 2 * mlp);
        self.time("glu", format!("{tokens} x {mlp}"), None, || {
            glu::forward(Activation::Silu, &gate_up, &mut activated)
        });
        self.time("glu backward", format!("{tokens} x {mlp}"), None, || {
            glu::backward(Activation::Silu, &gate_up, &activated, &mut d_gate_up);
        });
        let vocab = self.args.vocab;
        let (head, mut d_head) = (self.tensor(vocab, width), self.tensor(vocab, width));
        let targets: Vec<u32> = (0..tokens).map(|i| (i * 7919 % vocab) as u32).collect();
        let flops = 6.0 * (tokens * width * vocab) as f64;
        self.time("linear + cross-entropy", format!("{shape} -> {vocab}"), Some(flops), || {
            cross_entropy::forward_backward(&x, &head, &targets, None, 1e-3, &mut dx, &mut d_head);
        });
        let count = 6 << 20;
        let (mut w, g) = (self.tensor(1, count), self.tensor(1, count));
        let (mut m, mut v) = (self.arena.zeros(1, count, DType::F32), self.arena.zeros(1, count, DType::F32));
        let hyper = adamw::Hyper {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            step: 1,
            grad_scale: 1.0,
        };
        self.time("adamw", format!("{count}"), None, || {
            adamw::step(&mut w, &g, &mut m, &mut v, None, &hyper, None)
        });
        self.time("gradient norm", format!("{count}"), None, || {
            std::hint::black_box(adamw::sum_of_squares(&g));
        });
    }
}
