"""Trains the MFA model of a `keyfold train` run again, in PyTorch: same initial weights, batches, AdamW, clipping, rates.

usage: lm_curve.py RUN MODEL OUT.jsonl [--dtype bf16|f32] [--device cuda]
       lm_curve.py --compare NAME=CURVE.jsonl ... [--plot OUT.svg]

RUN is the folder of the run to be repeated (its resolved config.toml and tokenised text), MODEL a model folder with the
initial weights: the checkpoint of one update with `train.lr=1e-30`. Each line of OUT has step, loss, grad_norm. bf16 is
autocast over f32 weights; f32 has TF32 off. The second form compares every curve with the first. Needs torch and safetensors.
"""
import argparse
import json
import math
import re
import struct
import tomllib
from pathlib import Path

MASK = (1 << 64) - 1


def mix64(x):
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def mix2(a, b):
    return mix64(mix64(a) ^ (((b << 32) | (b >> 32)) & MASK))


def permuted(i, n, key):
    """The Feistel permutation of 0..n that orders a pass."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys, mask = [mix2(key, r) for r in range(4)], (1 << half) - 1
    while True:
        left, right = i >> half, i & mask
        for k in keys:
            left, right = right, left ^ (mix64(right ^ k) & mask)
        i = left << half | right
        if i < n:
            return i


class Batches:
    """The order of `keyfold train`: rows of a pass begin at an offset and are permuted, both by the seed."""

    def __init__(self, path, seed, seq):
        import numpy as np
        head = path.read_bytes()[:128]
        assert head[:8] == b"KFTOKENS", path
        version, width = struct.unpack("<II", head[8:16])
        self.tokens = struct.unpack("<Q", head[24:32])[0]
        self.ids = np.memmap(path, dtype={2: "<u2", 4: "<u4"}[width], mode="r", offset=128, shape=(self.tokens,))
        self.seed, self.seq, self.epoch, self.position = seed, seq, 0, 0

    def offset(self):
        return mix2(self.seed ^ 0x6F666673, self.epoch) % (min(self.tokens - 1 - self.seq, self.seq - 1) + 1)

    def count(self):
        return (self.tokens - 1 - self.offset()) // self.seq

    def next(self, rows):
        import numpy as np
        out = []
        while len(out) < rows:
            if self.position >= self.count():
                self.epoch, self.position = self.epoch + 1, 0
            row = permuted(self.position, self.count(), mix2(self.seed, self.epoch))
            start = self.offset() + row * self.seq
            out.append(np.asarray(self.ids[start:start + self.seq + 1], dtype=np.int64))
            self.position += 1
        return np.stack(out)


def rate(schedule, step, steps):
    if schedule["kind"] == "constant":
        return 1.0
    assert schedule["kind"] == "cosine", schedule
    warmup, last = schedule["warmup"], schedule["final_ratio"]
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1.0, steps - warmup))
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * progress))


def rotate(x, cos, sin):
    import torch
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def forward(w, model, ids, cos, sin):
    import torch.nn.functional as F
    a, eps = model["attention"], model.get("rms_norm_eps", 1e-5)
    batch, seq = ids.shape
    heads, width = a["heads"], a["head_dim"]
    norm = lambda x, name: F.rms_norm(x, x.shape[-1:], w[name], eps)
    linear = lambda x, name: F.linear(x, w[name])
    x = F.embedding(ids, w["model.embed_tokens.weight"])
    for layer in range(model["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        y = norm(x, at + "input_layernorm.weight")
        latent = norm(linear(y, at + "self_attn.q_proj.weight"), at + "self_attn.inter_norm.weight")
        q = linear(latent, at + "self_attn.wq.weight").view(batch, seq, heads, width).transpose(1, 2)
        k, v = (linear(y, at + f"self_attn.{n}_proj.weight")[:, None] for n in "kv")
        q, k = (rotate(t, cos.to(t.dtype), sin.to(t.dtype)) for t in (q, k))
        o = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q), is_causal=True)
        x = x + linear(o.transpose(1, 2).reshape(batch, seq, heads * width), at + "self_attn.o_proj.weight")
        y = norm(x, at + "post_attention_layernorm.weight")
        gate, up = linear(y, at + "mlp.gate_proj.weight"), linear(y, at + "mlp.up_proj.weight")
        x = x + linear(F.silu(gate) * up, at + "mlp.down_proj.weight")
    head = "model.embed_tokens.weight" if model.get("tie_word_embeddings") else "lm_head.weight"
    return linear(norm(x, "model.norm.weight"), head)


def train(o):
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    run = Path(o.run)
    config = tomllib.loads((run / "config.toml").read_text())
    model, settings, data = config["model"], config["train"], config["data"]
    assert model["attention"]["kind"] == "mfa" and settings.get("accumulate", 1) == 1
    found = [p for p in run.rglob("*") if p.is_file() and p.open("rb").read(8) == b"KFTOKENS"]
    tokens = max(found, key=lambda p: p.stat().st_size)
    batches = Batches(tokens, settings["seed"], data["seq_len"])
    w = {k: v.float().to(o.device).requires_grad_() for k, v in load_file(Path(o.model) / "model.safetensors").items()}
    adam = settings["optimizer"]
    groups = [{"params": [v for v in w.values() if v.dim() == 2], "weight_decay": adam["weight_decay"]},
              {"params": [v for v in w.values() if v.dim() != 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings["lr"], betas=adam["betas"], eps=adam["eps"], fused=o.device == "cuda")
    width, theta = model["attention"]["head_dim"], model["attention"].get("rope_theta", 10000.0)
    positions = torch.arange(data["seq_len"], dtype=torch.float64)[:, None]
    angles = positions * theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    cos, sin = angles.cos().float().to(o.device), angles.sin().float().to(o.device)
    with open(o.out, "w") as out:
        for step in range(1, settings["steps"] + 1):
            rows = torch.from_numpy(batches.next(settings["batch_size"])).to(o.device)
            for group in optimizer.param_groups:
                group["lr"] = settings["lr"] * rate(settings["schedule"], step, settings["steps"])
            with torch.autocast(o.device, dtype=torch.bfloat16, enabled=o.dtype == "bf16"):
                logits = forward(w, model, rows[:, :-1], cos, sin)
            loss = F.cross_entropy(logits.float().view(-1, logits.shape[-1]), rows[:, 1:].reshape(-1))
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(w.values(), settings["clip_norm"])
            optimizer.step()
            optimizer.zero_grad()
            print(json.dumps({"step": step, "loss": loss.item(), "grad_norm": norm.item()}), file=out)


def curve(path):
    lines = [json.loads(line) for line in open(path)]
    return {line["step"]: line["loss"] for line in lines}, {line["step"]: line["grad_norm"] for line in lines}


def compare(o):
    curves = {}
    for item in o.compare:
        name, path = item.split("=", 1)
        curves[name] = curve(path)
    first = next(iter(curves))
    for name, (losses, norms) in curves.items():
        if name != first:
            steps = sorted(losses.keys() & curves[first][0].keys())
            apart = [losses[s] - curves[first][0][s] for s in steps]
            far = max(range(len(apart)), key=lambda i: abs(apart[i]))
            mean = sum(map(abs, apart)) / len(apart)
            ratio = sum(abs(norms[s] / curves[first][1][s] - 1) for s in steps) / len(steps)
            print(f"{name} against {first}, {len(steps)} steps: |difference| mean {mean:.4f}, largest {abs(apart[far]):.4f} "
                  f"(step {steps[far]}), mean with sign {sum(apart) / len(apart):+.4f}, last {apart[-1]:+.4f}; "
                  f"norms differ by {100 * ratio:.1f} % on average")
    if o.plot:
        plot(o.plot, {name: losses for name, (losses, _) in curves.items()}, first)


def plot(path, curves, first):
    """Losses above, differences from the first curve below."""
    colours = ["#444444", "#d55e00", "#0072b2", "#009e73", "#cc79a7"]
    last = max(max(c) for c in curves.values())
    losses = [v for c in curves.values() for v in c.values()]
    apart = {n: {s: v - curves[first][s] for s, v in c.items() if s in curves[first]} for n, c in curves.items()}
    reach = max(abs(v) for c in apart.values() for v in c.values()) or 1.0
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="760" height="520" font-family="sans-serif" font-size="12">',
           '<rect width="760" height="520" fill="white"/>']
    for values, top, height, low, high, label in ((curves, 20, 280, min(losses), max(losses), "loss, nats per token"),
                                                  (apart, 340, 140, -reach, reach, f"difference from {first}")):
        x, y = lambda s: 60 + 680 * s / last, lambda v: top + height * (high - v) / (high - low)
        out.append(f'<rect x="60" y="{top}" width="680" height="{height}" fill="none" stroke="#999"/>'
                   f'<text x="60" y="{top - 6}">{label}</text>')
        for v in (low, (low + high) / 2, high):
            out.append(f'<text x="54" y="{y(v) + 4:.1f}" text-anchor="end">{v:.3f}</text>')
        for (name, c), colour in zip(values.items(), colours):
            points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in sorted(c.items()))
            out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
    for i, (name, colour) in enumerate(zip(curves, colours)):
        out.append(f'<text x="560" y="{45 + 18 * i}" fill="{colour}">{re.sub("[<&]", "", name)}</text>')
    out.append(f'<text x="400" y="505" text-anchor="middle">updates (1 to {last})</text></svg>')
    Path(path).write_text("\n".join(out))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("run", nargs="?")
    p.add_argument("model", nargs="?")
    p.add_argument("out", nargs="?")
    p.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    p.add_argument("--device", default="cuda")
    p.add_argument("--compare", nargs="+", metavar="NAME=CURVE")
    p.add_argument("--plot")
    o = p.parse_args()
    compare(o) if o.compare else train(o)


if __name__ == "__main__":
    main()
