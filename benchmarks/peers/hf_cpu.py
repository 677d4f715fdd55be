"""What a transformers user would run instead, on CPU: prefill and greedy decoding of a checkpoint folder, batch 1.

usage: hf_cpu.py MODEL_DIR [--dtype float32|bfloat16] [--threads N] [--prompt N] [--tokens N] [--cache dynamic|static]
                 [--compile] [--repeats N]
Prints one JSON object: medians and bests of the repeats after one warm-up, and the fastest single step, which other
work on the machine disturbs least. Needs torch and transformers.
Prefill runs the prompt and gives the last token's logits; decoding then runs one token at a time, choosing included.
"""
import argparse
import json
import resource
import statistics
import time

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache


@torch.inference_mode()
def once(o, model, step, ids):
    """Seconds of the prefill and of each later token."""
    cache = DynamicCache(config=model.config)
    if o.cache == "static":
        cache = StaticCache(config=model.config, max_cache_len=o.prompt + o.tokens)
    start = time.perf_counter()
    new = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1)
    times = [time.perf_counter() - start]
    for position in range(o.prompt, o.prompt + o.tokens - 1):
        at = torch.tensor([[position]])
        start = time.perf_counter()
        new = step(new, past_key_values=cache, use_cache=True, position_ids=at).logits[:, -1:].argmax(-1)
        times.append(time.perf_counter() - start)
    return times[0], times[1:]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model_dir")
    p.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    p.add_argument("--cache", choices=["dynamic", "static"], default="dynamic")
    p.add_argument("--compile", action="store_true", help="torch.compile of the decoding step (static cache)")
    for name, value in dict(threads=2, prompt=128, tokens=128, repeats=3).items():
        p.add_argument("--" + name, type=int, default=value)
    o = p.parse_args()
    if o.compile and o.cache != "static":
        p.error("--compile needs --cache static")
    if o.tokens < 2:
        p.error("--tokens must be at least 2: the first one belongs to the prefill")
    torch.set_num_threads(o.threads)
    transformers.utils.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(o.model_dir, dtype=getattr(torch, o.dtype)).eval()
    step = torch.compile(model, dynamic=False) if o.compile else model
    torch.manual_seed(0)
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (1, o.prompt))
    prefill, speeds, steps = [], [], []
    for _ in range(o.repeats + 1):
        first, rest = once(o, model, step, ids)
        prefill.append(first)
        speeds.append(len(rest) / sum(rest))
        steps += rest
    prefill, speeds = prefill[1:], speeds[1:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "task": "decode",
                      "mode": "compile" if o.compile else "eager", "attention": model.config._attn_implementation,
                      "dtype": o.dtype, "cache": o.cache, "threads": o.threads, "prompt": o.prompt, "tokens": o.tokens,
                      "prefill_s": statistics.median(prefill), "prefill_s_best": min(prefill),
                      "tokens_per_s": statistics.median(speeds), "tokens_per_s_best": max(speeds),
                      "step_s_best": min(steps), "peak_rss_mib": round(peak)}))


if __name__ == "__main__":
    main()
