//! Decoding on a device against the host's: every design, prompts and single tokens, steps that are recorded, and steps that
//! go on by themselves.

use crate::commands::print_line;
use keyfold_core::DType;
use keyfold_model::{Chunk, Decoder, ModelConfig, PagedCache, weights::Weights};
use keyfold_ops::sample::{Choice, Repetition, Rng, Sampler};
use keyfold_tensor::{Arena, Device};

/// Largest relative deviation of logits: activations and the cache are bf16 on a GPU, or the cache has three bits of mantissa.
const LIMITS: [f64; 2] = [3e-2, 8e-2];
const PAGE: usize = 16;
/// Tokens of the sequences' prompts.
const PROMPTS: [usize; 3] = [70, 5, 33];
/// Steps of one token a sequence.
const STEPS: usize = 20;
/// Steps that are asked for at a time.
const LATE: usize = 5;

/// Sequences in pages, and what became of them.
struct Decoding {
    decoder: Decoder,
    cache: PagedCache,
    pages: Vec<Vec<u32>>,
    past: Vec<usize>,
}

impl Decoding {
    fn new(config: &ModelConfig, device: Device, [dtype, kv]: [DType; 2]) -> anyhow::Result<Self> {
        // The same weights everywhere, rounded to what a GPU computes with.
        let host = Weights::allocate(&Arena::new(), config.declare()?, DType::Bf16, false);
        host.initialise(1);
        let weights = Weights::allocate(&Arena::on(device)?, config.declare()?, dtype, false);
        for ((_, from), (_, mut to)) in host.iter().zip(weights.iter()) {
            to.value.write(&from.value.to_vec());
        }
        let decoder = Decoder::new(config, &weights)?;
        let needed = |prompt: &usize| (prompt + STEPS + 8).div_ceil(PAGE);
        let all: usize = PROMPTS.iter().map(needed).sum();
        // From the last page down.
        let mut free = (0..all as u32).rev();
        let pages = PROMPTS.iter().map(|prompt| free.by_ref().take(needed(prompt)).collect()).collect();
        let cache = decoder.paged_cache(all, PAGE, kv)?;
        Ok(Self { decoder, cache, pages, past: vec![0; PROMPTS.len()] })
    }

    /// Logits of the last of each sequence's new tokens.
    fn step(&mut self, tokens: &[Vec<u32>]) -> Vec<f32> {
        let parts = tokens.iter().zip(&self.pages).zip(&self.past);
        let batch: Vec<Chunk<'_>> =
            parts.map(|((tokens, pages), past)| Chunk { tokens, past: *past, pages, logits: 1 }).collect();
        let logits = self.decoder.forward(&batch, &mut self.cache).to_vec();
        self.past.iter_mut().zip(tokens).for_each(|(past, tokens)| *past += tokens.len());
        logits
    }

    /// Logits of token 1 in the place of the last token of some sequences.
    fn repeat(&mut self, sequences: &[usize]) -> Vec<f32> {
        let chunk =
            |at: &usize| Chunk { tokens: &[1], past: self.past[*at] - 1, pages: &self.pages[*at], logits: 1 };
        let batch: Vec<Chunk<'_>> = sequences.iter().map(chunk).collect();
        self.decoder.forward(&batch, &mut self.cache).to_vec()
    }

    /// Tokens of steps that go on by themselves, of which some are read late.
    fn by_itself(&mut self, first: &[Vec<u32>], choices: &[Choice]) -> anyhow::Result<Vec<u32>> {
        let parts = first.iter().zip(&self.pages).zip(&self.past);
        let batch: Vec<Chunk<'_>> =
            parts.map(|((tokens, pages), past)| Chunk { tokens, past: *past, pages, logits: 1 }).collect();
        let mut decoding = self.decoder.decode(&batch, choices.to_vec(), &mut self.cache)?;
        let mut made = Vec::new();
        for _ in 0..STEPS / LATE {
            (0..LATE).for_each(|_| decoding.step());
            while let Some(tokens) = decoding.read() {
                made.extend(tokens.into_iter().collect::<Result<Vec<u32>, _>>()?);
            }
        }
        Ok(made)
    }

    /// The same, each step's tokens chosen by the host from the device's logits.
    fn asked(&mut self, first: &[Vec<u32>], choices: &[Choice]) -> anyhow::Result<Vec<u32>> {
        let (mut tokens, mut choices) = (first.to_vec(), choices.to_vec());
        let mut made = Vec::new();
        for _ in 0..STEPS {
            let mut logits = self.step(&tokens);
            let rows = logits.chunks_mut(self.decoder.config().vocab_size).zip(&mut choices);
            let next = rows.map(|(row, choice)| choice.choose(row)).collect::<Result<Vec<u32>, _>>()?;
            made.extend_from_slice(&next);
            tokens = next.into_iter().map(|token| vec![token]).collect();
        }
        Ok(made)
    }
}

/// Filters of several kinds, with and without a penalty.
fn drawing() -> anyhow::Result<Vec<Choice>> {
    let any = Sampler { temperature: 0.9, ..Sampler::default() };
    let samplers = [
        any,
        Sampler { top_k: Some(40), top_p: 0.9, min_p: 0.02, ..any },
        Sampler { temperature: 2.0, top_p: 0.8, ..any },
    ];
    let mut choices = Vec::new();
    for (sampler, penalty) in samplers.into_iter().zip([1.0, 1.3, 2.0]) {
        let mut repetition = Repetition::new(penalty)?;
        repetition.see(&[1, 2, 31, 32, 299]);
        choices.push(Choice { sampler, rng: Rng::new(choices.len() as u64), repetition });
    }
    Ok(choices)
}

/// The relative deviation of `got` from `want`.
fn deviation(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let difference: f64 = got.iter().zip(want).map(|(a, b)| square(f64::from(a - b))).sum();
    (difference / want.iter().map(|x| square(f64::from(*x))).sum::<f64>()).sqrt()
}

/// Whether a design decodes as on the host, with a cache of `kv` on the device. What cannot be cached so is told.
pub(super) fn check(kind: &str, config: &ModelConfig, device: Device, kv: DType) -> anyhow::Result<bool> {
    let mut host = Decoding::new(config, Device::Cpu, [DType::F32; 2])?;
    let mut other = match Decoding::new(config, device, [DType::Bf16, kv]) {
        Err(error) if kv == DType::Fp8 && !config.attention.design().holds_8_bits() => {
            print_line(format_args!("{kind:16} decoding, {kv}: {error}"))?;
            return Ok(true);
        }
        other => other?,
    };
    let limit = LIMITS[usize::from(kv == DType::Fp8)];
    let vocab = config.vocab_size;
    let token = |at: usize| (at * 31 % vocab) as u32;
    let mut worst = 0.0f64;
    let mut both = |host: &mut Decoding, other: &mut Decoding, tokens: &[Vec<u32>]| {
        worst = worst.max(deviation(&other.step(tokens), &host.step(tokens)));
    };
    both(&mut host, &mut other, &PROMPTS.map(|prompt| (0..prompt).map(token).collect()));
    // A few more tokens, not as many for each; then one each, recorded on a GPU.
    both(&mut host, &mut other, &[vec![1, 2, 3], vec![4], vec![5, 6]]);
    for step in 0..4 {
        both(&mut host, &mut other, &[vec![token(step)], vec![token(step + 9)], vec![token(step + 5)]]);
    }
    // Each alone, its last token once more: as in the crowd.
    let crowd = other.repeat(&[0, 1, 2]);
    let alone: Vec<f32> = (0..PROMPTS.len()).flat_map(|sequence| other.repeat(&[sequence])).collect();
    let apart = deviation(&alone, &crowd);
    // The host chooses from the device's logits what the device chooses by itself: the likeliest, then drawn tokens.
    let past = other.past.clone();
    let tokens: Vec<Vec<u32>> = (0..PROMPTS.len()).map(|at| vec![token(at)]).collect();
    let mut equal = true;
    for choices in [vec![Choice::greedy(); PROMPTS.len()], drawing()?] {
        let by_itself = other.by_itself(&tokens, &choices)?;
        other.past.clone_from(&past);
        equal &= by_itself == other.asked(&tokens, &choices)?;
        other.past.clone_from(&past);
    }
    let good = worst <= limit && apart <= LIMITS[0] && equal;
    print_line(format_args!(
        "{kind:16} decoding, {kv}: logits within {worst:.1e}, alone within {apart:.1e}, steps by themselves {}{}",
        if equal { "equal" } else { "differ" },
        if good { "" } else { ": wrong" }
    ))?;
    Ok(good)
}
