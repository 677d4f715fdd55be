"""What a PyTorch user would run instead, on CPU: training and decoding the benchmark models of `keyfold bench`.

usage: lm_cpu.py {train,decode} [--attention mha|mfa] [--compile] [--threads N] [shape options]
Prints one JSON object. Needs torch.
"""
import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

EPS = 1e-5


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


def rope(x, cos, sin):
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Attention(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.heads, self.dim = o.heads, o.head_dim
        self.kv_heads = o.heads if o.attention == "mha" else 1
        if o.attention == "mha":
            self.q = linear(o.width, o.heads * o.head_dim)
        else:
            norm = nn.RMSNorm(o.query_rank, eps=EPS)
            self.q = nn.Sequential(linear(o.width, o.query_rank), norm, linear(o.query_rank, o.heads * o.head_dim))
        self.k, self.v = linear(o.width, self.kv_heads * o.head_dim), linear(o.width, self.kv_heads * o.head_dim)
        self.o = linear(o.heads * o.head_dim, o.width)

    def split(self, x, heads):
        return x.view(x.shape[0], x.shape[1], heads, self.dim).transpose(1, 2)

    def forward(self, x, cos, sin, cache=None, position=None, mask=None):
        q = rope(self.split(self.q(x), self.heads), cos, sin)
        k = rope(self.split(self.k(x), self.kv_heads), cos, sin)
        v = self.split(self.v(x), self.kv_heads)
        if cache is None:
            mixed = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q), is_causal=True)
        else:
            keys, values = cache
            keys.index_copy_(2, position, k)
            values.index_copy_(2, position, v)
            # One shared key/value head: its query heads are queries of one attention.
            grouped = q if self.kv_heads > 1 else q.reshape(1, 1, self.heads, self.dim)
            mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).reshape(q.shape)
        return self.o(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))


class Block(nn.Module):
    def __init__(self, o):
        super().__init__()
        inner = o.width * 8 // 3 // 64 * 64
        self.norm1, self.norm2 = nn.RMSNorm(o.width, eps=EPS), nn.RMSNorm(o.width, eps=EPS)
        self.attention = Attention(o)
        self.gate, self.up, self.down = linear(o.width, inner), linear(o.width, inner), linear(inner, o.width)

    def forward(self, x, *rest):
        x = x + self.attention(self.norm1(x), *rest)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    def __init__(self, o, positions):
        super().__init__()
        self.embed, self.head = nn.Embedding(o.vocab, o.width), linear(o.width, o.vocab)
        self.blocks = nn.ModuleList(Block(o) for _ in range(o.layers))
        self.norm = nn.RMSNorm(o.width, eps=EPS)
        angles = torch.arange(positions)[:, None] * 10000.0 ** (-torch.arange(0, o.head_dim, 2) / o.head_dim)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids, caches=None, position=None, mask=None):
        at = slice(0, ids.shape[1]) if position is None else position
        cos, sin, x = self.cos[at], self.sin[at], self.embed(ids)
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, None if caches is None else caches[i], position, mask)
        return self.head(self.norm(x))


def train(o):
    model = Model(o, o.seq)
    run = torch.compile(model) if o.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    ids, times = torch.randint(0, o.vocab, (o.batch, o.seq + 1)), []
    for _ in range(3 + o.steps):
        start = time.perf_counter()
        F.cross_entropy(run(ids[:, :-1]).view(-1, o.vocab), ids[:, 1:].reshape(-1)).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return {"tokens_per_s": o.batch * o.seq / statistics.median(times[3:])}


@torch.inference_mode()
def decode(o):
    total = o.prompt + o.tokens
    model = Model(o, total).eval()
    run = torch.compile(model, dynamic=False) if o.compile else model
    kv = o.heads if o.attention == "mha" else 1
    caches = [tuple(torch.zeros(1, kv, total, o.head_dim) for _ in "kv") for _ in range(o.layers)]
    speeds = []
    for _ in range(o.repeats + 1):
        ids, times = torch.zeros(1, 1, dtype=torch.long), []
        for position in range(o.prompt, total):
            at = torch.tensor([position])
            mask = torch.arange(total)[None, None, None] <= position
            start = time.perf_counter()
            ids = run(ids, caches, at, mask).argmax(-1)
            times.append(time.perf_counter() - start)
        speeds.append(len(times) / sum(times))
    return {"tokens_per_s": statistics.median(speeds[1:])}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("task", choices=["train", "decode"])
    p.add_argument("--attention", choices=["mha", "mfa"], default="mha")
    p.add_argument("--compile", action="store_true")
    defaults = dict(threads=2, vocab=4096, width=256, layers=6, heads=4, head_dim=64, query_rank=128, seq=256, batch=8,
                    steps=8, prompt=128, tokens=128, repeats=3)
    for name, value in defaults.items():
        p.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    result = train(o) if o.task == "train" else decode(o)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    mode = "compile" if o.compile else "eager"
    print(json.dumps({"torch": torch.__version__, "task": o.task, "mode": mode, "attention": o.attention,
                      **result, "peak_rss_mib": round(peak)}))


if __name__ == "__main__":
    main()
