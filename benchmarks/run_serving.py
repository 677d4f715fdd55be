"""Serves a model with Keyfold and with other servers in turn and measures them with one client.

usage: run_serving.py --model DIR --text FILE --python PYTHON --out DIR [--rounds 1] [--threads 2] SERVERS
SERVERS are those that are at hand: --keyfold PATH, --transformers PATH (the `transformers` command), --llama-server PATH with
--gguf FILE (the same weights). PYTHON has `tokenizers`. Each round starts each server anew, asks for --requests streams at once
and then for some one after the other, and stops it. Rows are appended to DIR/raw.json, so that rounds, and servers, may be run
one by one on a machine that is otherwise idle; README.md is written anew from all of them.
"""
import argparse
import datetime
import json
import os
import pathlib
import socket
import statistics
import subprocess
import time
import urllib.request

from run_cpu import HERE, output, processor


def servers(o, port):
    """Name, command and model name of each server."""
    name = pathlib.Path(o.model).name
    if o.keyfold:
        yield "keyfold", [o.keyfold, "--threads", str(o.threads), "serve", o.model, "--port", str(port), "--kv-memory", "1GiB", "--name", name], name
    if o.llama_server:
        yield "llama.cpp", [o.llama_server, "-m", o.gguf, "--port", str(port), "--threads", str(o.threads), "--parallel", str(o.requests),
                            "--ctx-size", str(512 * o.requests)], name
    if o.transformers:
        serve = [o.transformers, "serve", o.model, "--device", "cpu", "--port", str(port)]
        yield "transformers, continuous batching", serve + ["--continuous-batching", "--cb-max-batch-tokens", "512", "--cb-num-blocks", "256"], o.model
        yield "transformers", serve, o.model


def measure(o, kept):
    rows = []
    # A first reading of the model's files is nobody's to pay.
    for path in pathlib.Path(o.model).glob("*.safetensors"):
        path.read_bytes()
    for place in range(len(list(servers(o, 0)))):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        side, command, name = list(servers(o, port))[place]
        number = sum(row["label"] == side for row in kept) // 2
        environment = dict(os.environ, OMP_NUM_THREADS=str(o.threads), HF_HUB_OFFLINE="1")
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                try:
                    if urllib.request.urlopen(url + "/health").status == 200:
                        break
                except OSError:
                    time.sleep(0.1)
            for concurrency, requests in ((o.requests, o.requests), (1, o.alone)):
                client = [o.python, str(HERE / "peers" / "serve_client.py"), "--url", url, "--model", name, "--text", o.text, "--tokenizer",
                          str(pathlib.Path(o.model) / "tokenizer.json"), "--label", side, "--concurrency", str(concurrency),
                          "--requests", str(requests), "--seed", str(100 * number + concurrency)]
                row = json.loads(output(client))
                shown = " ".join([pathlib.Path(command[0]).name, *command[1:]])
                for path in (o.model, o.gguf):
                    shown = shown.replace(path, pathlib.Path(path).name) if path else shown
                rows.append(dict(round=number, command=shown, **row))
                print(rows[-1], flush=True)
        finally:
            server.terminate()
            server.wait()
    return rows


def table(rows):
    sides = list(dict.fromkeys(row["label"] for row in rows))
    lines = ["| server | streams | made tok/s | first token ms | each token ms |", "|---|---:|---:|---:|---:|"]
    ratios = []
    for concurrency in sorted({row["concurrency"] for row in rows}, reverse=True):
        median = lambda side, key: statistics.median(r[key] for r in rows if r["label"] == side and r["concurrency"] == concurrency)
        for side in sides:
            lines.append(f"| {side} | {concurrency} | {median(side, 'made_tokens_per_s'):.1f} | {median(side, 'ttft_ms_p50'):.0f} | {median(side, 'tpot_ms_p50'):.1f} |")
            if side != "keyfold" and "keyfold" in sides:
                ratio = median("keyfold", "made_tokens_per_s") / median(side, "made_tokens_per_s")
                ratios.append(f"- {concurrency} streams: {ratio:.2f} times the tokens per second of {side}.")
    return "\n".join(lines + [""] + ratios)


def main():
    p = argparse.ArgumentParser()
    for name in ["model", "text", "python", "out"]:
        p.add_argument("--" + name, required=True)
    for name in ["keyfold", "transformers", "llama-server", "gguf", "note", "commit"]:
        p.add_argument("--" + name, default="")
    for name, value in dict(rounds=1, threads=2, requests=16, alone=4).items():
        p.add_argument("--" + name, type=int, default=value)
    o = p.parse_args()
    out = pathlib.Path(o.out)
    out.mkdir(parents=True, exist_ok=True)
    raw = out / "raw.json"
    kept = json.loads(raw.read_text()) if raw.exists() else {"rows": []}
    for _ in range(o.rounds):
        kept["rows"] += measure(o, kept["rows"])
    commit = o.commit or output(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]).strip()
    kept["facts"] = dict(date=str(datetime.date.today()), commit=commit, machine=processor(), threads=o.threads, model=pathlib.Path(o.model).name, note=o.note)
    raw.write_text(json.dumps(kept, indent=1) + "\n")
    facts = kept["facts"]
    counts = [sum(row["label"] == side for row in kept["rows"]) // 2 for side in {row["label"] for row in kept["rows"]}]
    rounds = min(counts)
    commands = "\n".join(f"    {command}" for command in dict.fromkeys(row["command"].replace("--port " + row["command"].split("--port ")[1].split()[0], "--port PORT") for row in kept["rows"]))
    (out / "README.md").write_text(
        f"# Servers on CPU, {facts['date']}\n\n{facts['model']}, bf16 weights, {facts['machine']}, {facts['threads']} threads; commit {facts['commit']}. "
        f"Prompts of 128 tokens of WikiText-2, 64 new tokens, greedy; `benchmarks/peers/serve_client.py` asks every server the same. "
        f"Medians of {rounds} rounds in turn.{' ' + facts['note'] if facts['note'] else ''}\n\n{table(kept['rows'])}\n\nServers:\n\n{commands}\n"
    )
    print((out / "README.md").read_text())


main()
