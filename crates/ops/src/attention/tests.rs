//! The kernels against double precision, with every instruction set at hand.

use super::{
    reference::{Case, compose},
    *,
};
use crate::testing::{assert_close, random, to_f64};
use keyfold_tensor::Arena;

const REL: f64 = 4e-6;

/// The best instruction set, AVX2 where that is another, none.
fn archs() -> Vec<Arch> {
    let mut archs = vec![Arch::new()];
    #[cfg(target_arch = "x86_64")]
    archs.extend(pulp::x86::V3::try_new().map(Arch::V3));
    #[cfg(target_arch = "x86_64")]
    archs.push(Arch::Scalar);
    archs
}

fn case(batch: usize, seq: usize, heads: (usize, usize), widths: (usize, usize)) -> Case {
    Case {
        batch,
        seq,
        past: 0,
        heads: heads.0,
        kv_heads: heads.1,
        width: widths.0,
        value_width: widths.1,
        scale: 1.7 / (widths.0 as f64).sqrt(),
        alibi: None,
        starts: None,
    }
}

impl Case {
    fn with_alibi(mut self) -> Self {
        self.alibi = Some((0..self.heads).map(|h| 0.5f32.powi(h as i32 + 1)).collect());
        self
    }

    /// Documents of 1, 2, 3 ... tokens times `step`, the same in no two rows of the batch.
    fn with_documents(mut self, step: usize) -> Self {
        let rows = (0..self.batch).flat_map(|batch| {
            let mut start = 0;
            let mut length = 1 + batch;
            (0..self.seq).map(move |i| {
                if i >= start + length * step {
                    (start, length) = (i, length + 1);
                }
                start as u32
            })
        });
        self.starts = Some(rows.collect());
        self
    }

    fn q_len(&self) -> usize {
        self.batch * self.seq * self.heads * self.width
    }

    fn shape(&self) -> Shape<'_> {
        Shape {
            batch: self.batch,
            seq: self.seq,
            scale: self.scale as f32,
            alibi: self.alibi.as_deref(),
            doc_starts: self.starts.as_deref(),
        }
    }
}

/// Heads in a row of their own tensor, with gaps of NaN before, between and after them.
struct Gapped {
    tensor: Tensor,
    count: usize,
    width: usize,
}

impl Gapped {
    const GAP: usize = 3;

    fn new(arena: &Arena, rows: usize, count: usize, width: usize, values: Option<&[f32]>) -> Self {
        let tensor = arena.tensor(rows, Self::GAP + count * (width + Self::GAP), DType::F32);
        let this = Self { tensor: tensor.columns(Self::GAP, tensor.cols() - Self::GAP), count, width };
        if let Some(values) = values {
            for (at, value) in values.iter().enumerate() {
                let (row, head, c) = (at / width / count, at / width % count, at % width);
                // SAFETY: nobody else uses the tensor.
                let row = unsafe { this.tensor.row_mut(row) };
                row[head * (width + Self::GAP) + c] = *value;
            }
        }
        this
    }

    fn heads(&self) -> Heads<'_> {
        Heads { tensor: &self.tensor, count: self.count, width: self.width, stride: self.width + Self::GAP }
    }

    /// The heads' values; checks that the gaps are as they were.
    fn values(&self) -> Vec<f32> {
        let stride = self.width + Self::GAP;
        let all = self.tensor.to_vec();
        let place = |at: usize| at % self.tensor.cols() % stride;
        assert!(
            all.iter().enumerate().all(|(at, x)| place(at) < self.width || x.is_nan()),
            "a gap was written"
        );
        all.iter().enumerate().filter(|(at, _)| place(*at) < self.width).map(|(_, x)| *x).collect()
    }
}

/// Forward and backward on views of poisoned memory; bits of all results.
fn check(arch: Arch, case: &Case) -> Vec<u32> {
    let arena = Arena::poisoned();
    let tokens = case.batch * case.seq;
    let fill = |seed, heads, width| random(seed, tokens * heads * width);
    let (q, k) = (fill(1, case.heads, case.width), fill(2, case.kv_heads, case.width));
    let (v, d_out) = (fill(3, case.kv_heads, case.value_width), fill(4, case.heads, case.value_width));
    let place = |values: Option<&[f32]>, heads, width| Gapped::new(&arena, tokens, heads, width, values);
    let (q_t, k_t) = (place(Some(&q), case.heads, case.width), place(Some(&k), case.kv_heads, case.width));
    let v_t = place(Some(&v), case.kv_heads, case.value_width);
    let d_out_t = place(Some(&d_out), case.heads, case.value_width);
    let out = place(None, case.heads, case.value_width);
    let lse = arena.tensor(case.batch * case.heads, case.seq, DType::F32);
    let shape = case.shape();
    cpu::forward(arch, q_t.heads(), k_t.heads(), v_t.heads(), &shape, out.heads(), &lse);

    let [q64, k64, v64, d_out64] = [&q, &k, &v, &d_out].map(|x| to_f64(x));
    let (want, want_lse) = case.forward(&q64, &k64, &v64);
    assert_close("out", &out.values(), &want, REL);
    assert_close("lse", &lse.to_vec(), &want_lse, REL);

    let want = case.backward(&q64, &k64, &v64, &d_out64);
    let mut bits: Vec<u32> = out.values().iter().chain(&lse.to_vec()).map(|x| x.to_bits()).collect();
    for accumulate in [false, true] {
        let before = |seed, len| accumulate.then(|| random(seed, len));
        let starts = [before(5, q.len()), before(6, k.len()), before(7, v.len())];
        let places =
            [(case.heads, case.width), (case.kv_heads, case.width), (case.kv_heads, case.value_width)];
        let grads: [Gapped; 3] =
            std::array::from_fn(|i| place(starts[i].as_deref(), places[i].0, places[i].1));
        let [dq, dk, dv] = std::array::from_fn(|i| Gradient { heads: grads[i].heads(), accumulate });
        let inputs = cpu::Inputs {
            q: q_t.heads(),
            k: k_t.heads(),
            v: v_t.heads(),
            out: out.heads(),
            d_out: d_out_t.heads(),
            lse: &lse,
        };
        cpu::backward(arch, inputs, &shape, dq, dk, dv);
        for ((grad, start), (want, name)) in
            grads.iter().zip(&starts).zip(want.iter().zip(["dq", "dk", "dv"]))
        {
            let mut want = want.clone();
            if let Some(start) = start {
                want.iter_mut().zip(start).for_each(|(want, start)| *want += f64::from(*start));
            }
            if want.iter().all(|x| *x == 0.0) {
                // One key takes all the probability: rounding is all there is.
                assert!(grad.values().iter().all(|x| x.abs() < 1e-6), "{name} of a single key");
            } else {
                assert_close(name, &grad.values(), &want, REL);
            }
            bits.extend(grad.values().iter().map(|x| x.to_bits()));
        }
    }
    bits
}

#[test]
fn reference_gradients_are_those_of_the_reference() {
    let case = case(2, 5, (4, 2), (3, 2)).with_alibi().with_documents(2);
    let tokens = case.batch * case.seq;
    let mut inputs =
        [(1, 4 * 3), (2, 2 * 3), (3, 2 * 2)].map(|(seed, columns)| to_f64(&random(seed, tokens * columns)));
    let d_out = to_f64(&random(4, tokens * 4 * 2));
    let loss = |[q, k, v]: &[Vec<f64>; 3]| -> f64 {
        case.forward(q, k, v).0.iter().zip(&d_out).map(|(o, d)| o * d).sum()
    };
    let gradients = case.backward(&inputs[0], &inputs[1], &inputs[2], &d_out);
    for (which, gradient) in gradients.iter().enumerate() {
        for (i, gradient) in gradient.iter().enumerate() {
            const STEP: f64 = 1e-5;
            let x = inputs[which][i];
            let [up, down] = [STEP, -STEP].map(|step| {
                inputs[which][i] = x + step;
                loss(&inputs)
            });
            inputs[which][i] = x;
            let want = (up - down) / (2.0 * STEP);
            assert!(
                (gradient - want).abs() < 1e-8,
                "input {which}, value {i}: {gradient}, by differences {want}"
            );
        }
    }
}

#[test]
fn lengths() {
    for arch in archs() {
        for seq in [1, 2, 7, 63, 64, 65, 130, 257] {
            check(arch, &case(2, seq, (2, 1), (16, 16)));
        }
    }
}

#[test]
fn heads_and_widths() {
    for arch in archs() {
        for heads in [(1, 1), (2, 1), (4, 2), (4, 4), (8, 1), (6, 2)] {
            check(arch, &case(1, 70, heads, (24, 24)));
        }
        for widths in [(6, 6), (1, 3), (24, 40), (40, 24), (48, 48), (64, 64), (130, 64)] {
            check(arch, &case(1, 67, (4, 2), widths));
        }
    }
}

#[test]
fn many_heads_share_one_key() {
    for arch in archs() {
        for (seq, heads) in [(3, 64), (20, 16), (33, 12), (130, 16)] {
            check(arch, &case(1, seq, (heads, 1), (32, 32)));
        }
    }
}

#[test]
fn wide_heads() {
    check(Arch::new(), &case(1, 200, (3, 1), (256, 256)));
    check(Arch::new(), &case(1, 150, (2, 1), (576, 512)));
}

#[test]
fn alibi_and_documents() {
    for arch in archs() {
        for heads in [(4, 4), (8, 2)] {
            check(arch, &case(2, 131, heads, (16, 16)).with_alibi());
            check(arch, &case(3, 131, heads, (16, 16)).with_documents(1));
            check(arch, &case(2, 200, heads, (16, 16)).with_documents(30));
            check(arch, &case(2, 65, heads, (16, 24)).with_documents(7).with_alibi());
        }
        check(arch, &case(2, 20, (8, 1), (16, 16)).with_documents(3).with_alibi());
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let mut case = case(1, 100, (2, 1), (16, 16));
    case.scale = 60.0;
    let arena = Arena::poisoned();
    let [q, k, v] = [(1, 2), (2, 1), (3, 1)].map(|(seed, heads)| random(seed, 100 * heads * 16));
    let [q_t, k_t, v_t] = [(&q, 32), (&k, 16), (&v, 16)].map(|(x, cols)| arena.tensor_of(100, cols, x));
    let out = arena.tensor(100, 32, DType::F32);
    let mut lse = arena.tensor(2, 100, DType::F32);
    let packed = Heads::packed;
    forward(packed(&q_t, 2), packed(&k_t, 1), packed(&v_t, 1), &case.shape(), packed(&out, 2), &mut lse);
    let (want, want_lse) = case.forward(&to_f64(&q), &to_f64(&k), &to_f64(&v));
    assert_close("out", &out.to_vec(), &want, 2e-4);
    assert_close("lse", &lse.to_vec(), &want_lse, REL);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for case in [
        case(2, 130, (4, 2), (24, 16)),
        case(1, 300, (8, 1), (32, 32)),
        case(8, 64, (2, 1), (16, 16)).with_documents(5),
    ] {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| check(Arch::new(), &case))
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(2), run(3));
    }
}

/// A key that is its own value: both gradients are added to one buffer.
#[test]
fn keys_that_are_values() {
    for (batch, seq) in [(1, 200), (16, 20)] {
        let case = case(batch, seq, (8, 1), (24, 24));
        let (arena, tokens) = (Arena::poisoned(), batch * seq);
        let (q, k, d_out) = (random(1, case.q_len()), random(2, tokens * 24), random(4, case.q_len()));
        let [q_t, d_out_t] = [&q, &d_out].map(|x| arena.tensor_of(tokens, 8 * 24, x));
        let k_t = arena.tensor_of(tokens, 24, &k);
        let (out, dq) = (arena.tensor(tokens, 8 * 24, DType::F32), arena.tensor(tokens, 8 * 24, DType::F32));
        let mut lse = arena.tensor(batch * 8, seq, DType::F32);
        let dkv = arena.zeros(tokens, 24, DType::F32);
        let wide = |tensor| Heads::packed(tensor, 8);
        let kv = Heads::packed(&k_t, 1);
        forward(wide(&q_t), kv, kv, &case.shape(), wide(&out), &mut lse);
        let both = Gradient { heads: Heads::packed(&dkv, 1), accumulate: true };
        let dq_grad = Gradient { heads: wide(&dq), accumulate: false };
        let (out_h, d_out_h) = (wide(&out), wide(&d_out_t));
        backward(wide(&q_t), kv, kv, out_h, d_out_h, &lse, &case.shape(), dq_grad, both, both);
        let (q, k, d_out) = (to_f64(&q), to_f64(&k), to_f64(&d_out));
        let [want_dq, mut want, dv] = case.backward(&q, &k, &k, &d_out);
        want.iter_mut().zip(dv).for_each(|(dk, dv)| *dk += dv);
        assert_close("dq", &dq.to_vec(), &want_dq, REL);
        assert_close("dk + dv", &dkv.to_vec(), &want, REL);
    }
}

#[test]
fn no_tokens() {
    let arena = Arena::new();
    let (empty, mut lse) = (arena.tensor(0, 16, DType::F32), arena.tensor(2, 0, DType::F32));
    let (heads, case) = (Heads::packed(&empty, 2), case(1, 0, (2, 2), (8, 8)));
    forward(heads, heads, heads, &case.shape(), heads, &mut lse);
    let gradient = Gradient { heads, accumulate: true };
    backward(heads, heads, heads, heads, heads, &lse, &case.shape(), gradient, gradient, gradient);
    let paged = Paged { page_size: 1, sequences: &[], plans: &Plans::default() };
    let cache = Cached {
        k: heads,
        v: heads,
        paged,
        scales: None,
        scale: 1.0,
        alibi: None,
        window: None,
        rotate: None,
    };
    cached(heads, &cache, heads);
}

#[test]
#[should_panic(expected = "the document of query 2 starts at 3")]
fn documents_start_before_their_tokens() {
    let arena = Arena::new();
    let (tensor, mut lse) = (arena.zeros(4, 8, DType::F32), arena.tensor(1, 4, DType::F32));
    let heads = Heads::packed(&tensor, 1);
    let case = Case { starts: Some(vec![0, 0, 3, 3]), ..case(1, 4, (1, 1), (8, 8)) };
    forward(heads, heads, heads, &case.shape(), heads, &mut lse);
}

mod cache;
