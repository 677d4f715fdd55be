//! `keyfold bench attention`: reading a paged cache, one step of one layer, beside what the device can do at most.

use super::{
    ceilings::{Ceilings, SECONDS, Times, draw},
    print,
};
use anyhow::Context;
use keyfold_core::{DType, row_width};
use keyfold_ops::{
    attention::{
        self, Cached, Heads, Paged, Plans, Sequence, cached,
        paged::{Batch, Cache, MAX_TOKENS, Shape, attend},
    },
    fp8,
    rope::RopeTable,
};
use keyfold_tensor::{Device, Tensor};
use serde::Serialize;

/// Caches are rotated until this much memory is read between two uses of one, many times what processors keep.
const ROTATED_BYTES: usize = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Variant {
    /// 64 heads on one key and value head of 256 channels.
    Mfa,
    /// The same, values being the keys.
    MfaKr,
    /// The same, with keys rotated as they are read.
    MfaKrRotate,
    /// Absorbed: 64 heads on one key of 576 channels, of which 512 are the value.
    Mla,
    /// 32 heads of 128 channels on 8.
    Gqa,
    /// As MFA, of which a token sees the last 1,024 keys.
    MfaWindow,
    /// 91 heads of 128 channels, keys and values of two terms each: as many parameters as MFA with 32 heads.
    Tpa,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum KvDtype {
    /// 16 bits.
    Bf16,
    /// 8 bits, with a scale for 64 channels.
    Fp8,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this one [default: all].
    #[arg(long, value_enum)]
    variant: Option<Variant>,
    /// Sequences [default: with the contexts, a list of usual ones].
    #[arg(long, requires = "context")]
    batch: Option<usize>,
    /// Tokens of each sequence in the cache.
    #[arg(long, requires = "batch")]
    context: Option<usize>,
    /// Element type of the cache.
    #[arg(long, value_enum, default_value_t = KvDtype::Bf16)]
    kv_dtype: KvDtype,
    /// Tokens of a page; pages lie in random order.
    #[arg(long, default_value_t = 64)]
    page: usize,
    /// New tokens of a sequence: a few, or a prompt.
    #[arg(long, default_value_t = 1)]
    tokens: usize,
    /// Seconds of measurement of a case. A GPU at its power limit slows down after some tenths of one.
    #[arg(long, default_value_t = SECONDS)]
    seconds: f64,
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    device: String,
    variant: String,
    batch: usize,
    context: usize,
    page: usize,
    tokens: usize,
    kv_dtype: &'static str,
    us: f64,
    /// The least and the most of five measurements, of which `us` is the median.
    us_range: [f64; 2],
    /// Of a prompt: what the training forward pass takes for it, on rows that lie one behind the other.
    contiguous_us: Option<f64>,
    /// Bytes of the cache that a step must read, over the time.
    gb_s: f64,
    tflop_s: f64,
    /// Reading and writing of a plain copy, together.
    copy_gb_s: f64,
    /// A square product of bf16 matrices.
    matmul_tflop_s: f64,
    /// What the time is of the time that the copy would take for as many bytes, inverted.
    of_copy: f64,
}

impl Variant {
    const ALL: [Self; 7] =
        [Self::Mfa, Self::MfaKr, Self::MfaKrRotate, Self::Mla, Self::Gqa, Self::MfaWindow, Self::Tpa];

    fn shape(self, page: usize, tokens: usize) -> Shape {
        let mfa = Shape {
            heads: 64,
            kv_heads: 1,
            width: 256,
            value_width: 256,
            shared: false,
            rotate: false,
            fp8: false,
            page,
            tokens,
            window: None,
            factors: None,
        };
        match self {
            Self::Mfa => mfa,
            Self::MfaKr => Shape { shared: true, ..mfa },
            Self::MfaKrRotate => Shape { shared: true, rotate: true, ..mfa },
            Self::Mla => Shape { width: 576, value_width: 512, shared: true, ..mfa },
            Self::Gqa => Shape { heads: 32, kv_heads: 8, width: 128, value_width: 128, ..mfa },
            Self::MfaWindow => Shape { window: Some(1024), ..mfa },
            Self::Tpa => Shape { heads: 91, width: 128, value_width: 128, factors: Some(2), ..mfa },
        }
    }

    /// Sequences and their lengths.
    fn usual(self) -> &'static [(usize, usize)] {
        match self {
            Self::Mfa => &[(1, 32768), (16, 8192), (64, 4096), (64, 32768), (128, 8192)],
            Self::MfaKr | Self::MfaKrRotate => &[(64, 8192), (64, 32768)],
            Self::Mla => &[(1, 32768), (64, 4096), (64, 8192)],
            Self::Gqa => &[(16, 8192)],
            Self::MfaWindow => &[(64, 8192)],
            Self::Tpa => &[(1, 32768), (64, 8192)],
        }
    }
}

fn heads_of(tensor: &Tensor, count: usize, width: usize) -> Heads<'_> {
    Heads { tensor, count, width, stride: width }
}

/// Channels of a key up to which the training forward pass has a kernel.
const WIDEST: usize = 256;

/// What is measured with.
struct Bench(Ceilings);

struct Measured {
    times: Times,
    /// Of the training forward pass.
    contiguous: Option<Times>,
    /// Of the cache, which a step reads.
    bytes: f64,
    flops: f64,
}

impl Bench {
    /// A step, and the training forward pass on the same prompts if that is what it is.
    fn attention(&self, shape: Shape, batch: usize, context: usize) -> Measured {
        let Shape { heads, kv_heads, width, value_width, shared, rotate, fp8, page, tokens, window, factors } =
            shape;
        let (rank, count) = (factors.unwrap_or(0), factors.unwrap_or(kv_heads));
        let [k_cols, v_cols] = [count * width, if shared { 0 } else { count * value_width }];
        let step = heads.next_multiple_of(8);
        let cols = k_cols + v_cols + 2 * rank * step;
        let needed = context.div_ceil(page);
        let slots = batch * needed * page;
        let stored = if fp8 { DType::Fp8 } else { DType::Bf16 };
        let row_bytes = row_width(cols, stored) * stored.bytes();
        let sets = (ROTATED_BYTES / (slots * row_bytes)).clamp(1, 32) + 1;
        let sharing = fp8.then(|| fp8::sharing(width));
        let caches: Vec<_> = (0..sets).map(|_| self.cache(slots, cols, sharing)).collect();
        let q = self.0.random(batch * tokens, heads * width);
        let mut out = self.0.arena().tensor(q.rows(), heads * value_width, DType::Bf16);
        let mut lse = self.0.arena().tensor(q.rows(), heads, DType::F32);
        let mut tables: Vec<u32> = (0..(batch * needed) as u32).collect();
        let mut state = 7;
        for last in (1..tables.len()).rev() {
            tables.swap(last, draw(&mut state) as usize % (last + 1));
        }
        let table = rotate.then(|| RopeTable::new(width, 5e5, context));
        let scale = (width as f32).powf(-0.5);
        // Keys, values and scales of the call's cache.
        let planes = |call: usize| {
            let (rows, scales) = &caches[call % caches.len()];
            let k = rows.columns(0, k_cols);
            let v = match shared {
                true => k.columns(0, count * value_width),
                false => rows.columns(k_cols, v_cols),
            };
            (k, v, scales.as_ref())
        };
        let times = if tokens <= MAX_TOKENS {
            let work = Batch::new(self.0.arena(), shape, &vec![context as u32; batch], &tables);
            self.0.time(|call| {
                let (k, v, scales) = planes(call);
                let (rows, _) = &caches[call % caches.len()];
                let a = [0, 1].map(|at| rows.columns(k_cols + v_cols + at * rank * step, rank * step));
                let factor = |tensor| Heads { tensor, count, width: heads, stride: step };
                let cache = Cache {
                    k: heads_of(&k, count, width),
                    v: (!shared).then(|| heads_of(&v, count, value_width)),
                    scales,
                    scale,
                    rotate: table.as_ref(),
                    factors: factors.map(|_| a.each_ref().map(factor)),
                    alibi: None,
                };
                attend(&q, &cache, &work, &mut out, Some(&mut lse));
            })
        } else {
            let plans = Plans::default();
            let sequence = |pages| Sequence { past: context - tokens, new: tokens, pages };
            let sequences: Vec<Sequence<'_>> = tables.chunks(needed).map(sequence).collect();
            self.0.time(|call| {
                let (k, v, scales) = planes(call);
                let cache = Cached {
                    k: heads_of(&k, kv_heads, width),
                    v: heads_of(&v, kv_heads, value_width),
                    paged: Paged { page_size: page, sequences: &sequences, plans: &plans },
                    scales,
                    scale,
                    alibi: None,
                    window,
                    rotate: table.as_ref(),
                };
                cached(heads_of(&q, heads, width), &cache, heads_of(&out, heads, value_width));
            })
        };
        let whole = tokens > MAX_TOKENS && tokens == context && !fp8 && window.is_none();
        let contiguous = (whole && width <= WIDEST && context.is_multiple_of(page)).then(|| {
            let shape = attention::Shape { batch, seq: tokens, scale, alibi: None, doc_starts: None };
            let mut lse = self.0.arena().tensor(batch * heads, tokens, DType::F32);
            self.0.time(|call| {
                let (k, v, _) = planes(call);
                let [q, out] = [(&q, width), (&out, value_width)].map(|(x, width)| heads_of(x, heads, width));
                let [k, v] = [(&k, width), (&v, value_width)].map(|(x, width)| heads_of(x, kv_heads, width));
                attention::forward(q, k, v, &shape, out, &mut lse);
            })
        });
        // Each of the new tokens sees those before it and itself.
        let reach = window.map_or(context, |window| context.min(window)) as f64;
        let seen = match window {
            Some(_) => (batch * tokens) as f64 * reach,
            None => (batch * tokens) as f64 * (reach - (tokens as f64 - 1.0) / 2.0),
        };
        Measured {
            times,
            contiguous,
            bytes: batch as f64 * reach * row_bytes as f64,
            flops: 2.0 * seen * (heads * (width + value_width) * rank.max(1)) as f64,
        }
    }

    /// Random rows; in 8 bits if `sharing` columns have one scale, and these scales.
    fn cache(&self, slots: usize, cols: usize, sharing: Option<usize>) -> (Tensor, Option<Tensor>) {
        let Some(sharing) = sharing else { return (self.0.random(slots, cols), None) };
        let memory = self.0.arena().tensor(slots, row_width(cols, DType::Fp8), DType::Fp8);
        self.0.fill_rows(&memory, cols, sharing);
        fp8::rows_of(&memory, cols)
    }
}

pub(crate) fn run(args: &Args, device: Device) -> anyhow::Result<()> {
    anyhow::ensure!(device != Device::Cpu, "bench attention measures a GPU: name one, with --device cuda");
    anyhow::ensure!(
        args.page.is_power_of_two() && (16..=128).contains(&args.page),
        "--page {}: a power of two from 16 to 128 was expected",
        args.page
    );
    anyhow::ensure!(args.tokens > 0, "--tokens 0: at least 1 was expected");
    let asked = args.batch.zip(args.context);
    if let Some((batch, context)) = asked {
        anyhow::ensure!(batch > 0 && context >= args.tokens, "--batch, --context: too few for a step");
        batch.checked_mul(context).filter(|keys| *keys < 1 << 28).context("--batch, --context: too many")?;
    }
    anyhow::ensure!(
        args.seconds > 0.0 && args.seconds <= 60.0,
        "--seconds {}: up to 60 were expected",
        args.seconds
    );
    let bench = Bench(Ceilings::new(device, args.seconds)?);
    let mut cases = Vec::new();
    for variant in Variant::ALL.into_iter().filter(|variant| args.variant.is_none_or(|only| only == *variant))
    {
        let asked = asked.map(|case| [case]);
        for (batch, context) in asked.as_ref().map_or(variant.usual(), |asked| asked) {
            let fp8 = args.kv_dtype == KvDtype::Fp8;
            let shape = Shape { fp8, ..variant.shape(args.page, args.tokens) };
            // Prompts of factors are multiplied out, and there are no factors in 8 bits.
            if *context < args.tokens || (shape.factors.is_some() && (fp8 || args.tokens > MAX_TOKENS)) {
                continue;
            }
            let measured = bench.attention(shape, *batch, *context);
            bench.0.arena().trim();
            cases.push((variant, *batch, *context, measured));
        }
    }
    anyhow::ensure!(
        !cases.is_empty(),
        "--variant, --tokens, --kv-dtype: nothing to measure (tpa: a few tokens, bf16; contexts of at least --tokens)"
    );
    // Behind what they are compared with: matrix products draw so much power that what follows them is slower.
    let (copy, matmul) = (bench.0.copy(), bench.0.matmul());
    let rows: Vec<Row> = cases
        .into_iter()
        .map(|(variant, batch, context, Measured { times, contiguous, bytes, flops })| Row {
            device: device.describe(),
            variant: format!("{variant:?}"),
            batch,
            context,
            page: args.page,
            tokens: args.tokens,
            kv_dtype: match args.kv_dtype {
                KvDtype::Bf16 => "bf16",
                KvDtype::Fp8 => "fp8",
            },
            us: times.median * 1e6,
            us_range: [times.fastest * 1e6, times.slowest * 1e6],
            contiguous_us: contiguous.map(|contiguous| contiguous.median * 1e6),
            gb_s: bytes / times.median / 1e9,
            tflop_s: flops / times.median / 1e12,
            copy_gb_s: copy / 1e9,
            matmul_tflop_s: matmul / 1e12,
            of_copy: bytes / times.median / copy,
        })
        .collect();
    print(&rows, args.json, |row| {
        let contiguous = row.contiguous_us.map(|us| format!(", {us:.1} us in training")).unwrap_or_default();
        format!(
            "{:12} {:4} x {:6} {:9.1} us {:6.0} GB/s ({:3.0} % of a copy) {:5.0} TFLOP/s{contiguous}",
            row.variant,
            row.batch,
            row.context,
            row.us,
            row.gb_s,
            100.0 * row.of_copy,
            row.tflop_s
        )
    })
}
