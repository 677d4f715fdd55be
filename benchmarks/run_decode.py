"""Decodes a 1.78B MFA model on a GPU with Keyfold and with PyTorch in one sitting, and designs of its size at their largest
batches, with caches of 16 and of 8 bits; reads paged caches alone; writes what was measured.

usage: run_decode.py --keyfold PATH --out DIR [--commit HASH] [--torch-python PATH --decode-peer FILE --attention-peer FILE]
                     [--repeats 3] [--capacity 8192,32768] [--capacity-only]
`--decode-peer` is a Python file with `decode(c, B, T)` and `big` before its first print, as the peer script of this project
has them; `--attention-peer` one that prints what it measures. DIR gets raw.json and attention.json (every row with its
command), table.md and attention_peer.txt; `--capacity ''` leaves the largest batches out, `--capacity-only` all
else but the first row. Give the library folder of cuBLASLt in LD_LIBRARY_PATH.
"""
import argparse
import datetime
import json
import pathlib
import re
import subprocess

SHAPES = [(1, 4096), (8, 4096), (32, 4096), (32, 32768), (64, 4096), (128, 8192)]
SHAPES_FP8 = [(32, 32768), (128, 8192)]
# Batch, cached tokens and new ones: prompts, and the end of a long one.
PROMPTS = [(1, 2048, 2048), (1, 8192, 8192), (1, 32768, 2048)]
PEER_SHAPES = [(1, 4096), (32, 4096), (32, 32768), (128, 8192)]
MODEL = ("--vocab 65536 --width 2048 --layers 24 --heads 32 --shared-width 256 --head-dim 128 --query-rank 1024 "
         "--mlp-width 5632").split()
KINDS = ["mfa", "mfa-kr", "mla", "gqa", "mha", "tpa"]


def output(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done.stdout


def keyfold(o, kind, batch, context, *more):
    command = [o.keyfold, "--device", "cuda", "bench", "decode", "--json", "--attention", kind, *MODEL, "--batch", str(batch),
               "--context", str(context), "--skip-prompt", "--tokens", "32", "--repeats", str(o.repeats), *more]
    rows = json.loads(output(command))
    print(command[7:], rows[-1]["batch"], round(rows[-1]["tokens_per_s"]), flush=True)
    return dict(command=" ".join([pathlib.Path(command[0]).name, *command[1:]]), **rows[-1])


def attention(o, *more):
    command = [o.keyfold, "--device", "cuda", "bench", "attention", "--json", *more]
    name = " ".join([pathlib.Path(command[0]).name, *command[1:]])
    rows = [dict(command=name, **row) for row in json.loads(output(command))]
    for row in rows:
        print(row["variant"], row["kv_dtype"], row["batch"], row["context"], row["tokens"], round(row["us"], 1), flush=True)
    return rows


def peer(o, on_row):
    source = f"s=open({o.decode_peer!r}).read(); exec(s[:s.index('\\nprint(')])\n"
    source += "".join(f"decode(big,{batch},{context})\n" for batch, context in PEER_SHAPES)
    command = [o.torch_python, "-u", "-c", source + "print('torch', torch.__version__)"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in running.stdout:
        line = line.rstrip()
        print(line, flush=True)
        found = re.match(r"decode (\S+) .* B(\d+) T(\d+) ([\d.]+) ms/tok-step (\d+) tok/s", line)
        if found:
            name, batch, context, ms, speed = found.groups()
            on_row(dict(side=name, batch=int(batch), context=int(context), ms=float(ms), tokens_per_s=float(speed)))
        elif line.startswith("torch"):
            on_row(dict(side="version", torch=line.split()[1]))
    if running.wait():
        raise SystemExit(f"{o.decode_peer}: ended with {running.returncode}")


def main():
    p = argparse.ArgumentParser()
    for name in ["keyfold", "out"]:
        p.add_argument("--" + name, required=True)
    for name in ["torch-python", "decode-peer", "attention-peer"]:
        p.add_argument("--" + name)
    p.add_argument("--commit", default="unknown")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--capacity", default="8192,32768", help="tokens of each sequence, of as many as fit")
    p.add_argument("--capacity-only", action="store_true")
    o = p.parse_args()
    out = pathlib.Path(o.out)
    out.mkdir(parents=True, exist_ok=True)
    if not o.capacity_only:
        alone = attention(o) + attention(o, "--kv-dtype", "fp8")
        for batch, context, tokens in PROMPTS:
            alone += attention(o, "--variant", "mfa", "--batch", str(batch), "--context", str(context), "--tokens", str(tokens))
        (out / "attention.json").write_text(json.dumps(alone, indent=1) + "\n")
    speed = [keyfold(o, "mfa", *shape) for shape in SHAPES[:1 if o.capacity_only else None]]
    speed += [keyfold(o, "mfa", *shape, "--kv-dtype", "fp8") for shape in SHAPES_FP8 if not o.capacity_only]
    facts = dict(date=str(datetime.date.today()), commit=o.commit, device=speed[0]["device"])
    peers, capacity = [], []

    def save(*row):
        # Again and again: what takes long may be ended from outside.
        peers.extend(row)
        (out / "raw.json").write_text(json.dumps(dict(facts=facts, speed=speed, capacity=capacity, peers=peers), indent=1) + "\n")

    save()
    if o.attention_peer:
        (out / "attention_peer.txt").write_text(output([o.torch_python, o.attention_peer]))
    if o.decode_peer:
        peer(o, save)
    for context in [int(tokens) for tokens in o.capacity.split(",") if tokens]:
        for kind in KINDS:
            # TPA's factors are kept in 16 bits.
            for dtype in ["bf16"] if kind == "tpa" else ["bf16", "fp8"]:
                capacity.append(keyfold(o, kind, 0, context, "--match-params", "mfa", "--kv-dtype", dtype))
                save()
    copy, matmul = speed[0]["read_gb_per_s"], speed[0]["matmul_tflop_per_s"]
    lines = [f"{facts['device']}, commit {o.commit}: a copy moves {copy:,.0f} GB/s, a bf16 product runs at {matmul:,.0f} TFLOP/s.", "",
             "| sequences | tokens each | cache | tokens/s | ms a step | of the copy's speed | PyTorch compiled | eager |",
             "|---:|---:|---|---:|---:|---:|---:|---:|"]
    for row in speed:
        def of(side):
            found = [r for r in peers if (r["side"], r.get("batch"), r.get("context")) == (side, row["batch"], row["prompt_tokens"])]
            return f"{found[0]['tokens_per_s']:,.0f}" if found else ""
        lines.append(f"| {row['batch']} | {row['prompt_tokens']:,} | {row['kv_dtype']} | {row['tokens_per_s']:,.0f} | {row['ms_per_token']:.2f} | "
                     f"{100 * row['bandwidth_share']:.0f} % | {of('compile+graphs')} | {of('eager')} |")
    lines += ["", "| design | parameters | cache | bytes of it a token | tokens each | largest batch | tokens/s |", "|---|---:|---|---:|---:|---:|---:|"]
    for row in capacity:
        lines.append(f"| {row['attention']} | {row['params'] / 1e9:.2f}B | {row['kv_dtype']} | {row['cache_bytes_per_token']:,} | "
                     f"{row['prompt_tokens']:,} | {row['batch']:,} | {row['tokens_per_s']:,.0f} |")
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


main()
