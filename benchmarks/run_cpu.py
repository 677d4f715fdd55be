"""Runs Keyfold and PyTorch on the same CPU work in turn, several times, and writes medians and ratios.

usage: run_cpu.py --keyfold PATH --torch-python PATH --out DIR [--rounds 3] [--threads 2] [--train-peer SCRIPT]
DIR gets raw.json (every measurement with its command) and summary.md. Use an otherwise idle machine.
--train-peer runs another script with the command line of peers/train_cpu.py that prints `N tok/s peak_rss M MiB`.
"""
import argparse
import datetime
import json
import pathlib
import platform
import re
import statistics
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
SHAPES = {"mha": [], "mfa": ["--heads", "8", "--head-dim", "128"]}


def output(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def keyfold(o, task, attention, precision):
    command = [o.keyfold, "--threads", str(o.threads), "--matmul-precision", precision, "bench", task, "--json",
               "--attention", attention, *SHAPES[attention]]
    row = json.loads(output(command))[0]
    return command, row["tokens_per_s"], row.get("peak_rss_mib")


def torch(o, task, attention, mode):
    shape = ["--attention", attention, "--threads", str(o.threads), *SHAPES[attention]]
    shape += ["--compile"] if mode == "compile" else []
    if task == "train" and o.train_peer:
        command = [o.torch_python, o.train_peer, *shape]
        found = re.search(r"([\d.]+) tok/s peak_rss (\d+) MiB", output(command))
        return command, float(found[1]), float(found[2])
    command = [o.torch_python, str(HERE / "peers" / "lm_cpu.py"), task, *shape]
    row = json.loads(output(command))
    return command, row["tokens_per_s"], row["peak_rss_mib"]


def processor():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} processors" if names else platform.processor()


def main():
    p = argparse.ArgumentParser()
    for name in ["keyfold", "torch-python", "out"]:
        p.add_argument("--" + name, required=True)
    p.add_argument("--train-peer")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    o = p.parse_args()
    sides = {"keyfold": lambda t, a: keyfold(o, t, a, "highest"), "keyfold high": lambda t, a: keyfold(o, t, a, "high"),
             "torch eager": lambda t, a: torch(o, t, a, "eager"), "torch compile": lambda t, a: torch(o, t, a, "compile")}
    raw = []
    for number in range(o.rounds):
        for task in ["train", "decode"]:
            for attention in SHAPES:
                for side, run in sides.items():
                    command, speed, memory = run(task, attention)
                    command = [pathlib.Path(command[0]).name, *command[1:]]
                    raw.append(dict(round=number, task=task, attention=attention, side=side, tokens_per_s=speed,
                                    peak_rss_mib=memory, command=" ".join(command)))
                    print(raw[-1], flush=True)
    out = pathlib.Path(o.out)
    out.mkdir(parents=True, exist_ok=True)
    commit = output(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"])
    facts = dict(date=str(datetime.date.today()), commit=commit, machine=processor(), threads=o.threads,
                 torch=output([o.torch_python, "-c", "import torch; print(torch.__version__)"]))
    (out / "raw.json").write_text(json.dumps(dict(facts=facts, rows=raw), indent=1) + "\n")
    lines = [f"# Keyfold and PyTorch on CPU, {facts['date']}", "", f"{facts['machine']}; {o.threads} threads; torch "
             f"{facts['torch']}; commit {commit}; medians of {o.rounds} rounds, sides in turn. `high` is Keyfold with "
             "`--matmul-precision high` (three bf16 products on AMX instead of f32).", "",
             "| task | attention | side | tokens/s | of torch eager | of torch compile | peak MiB |",
             "|---|---|---|---:|---:|---:|---:|"]
    for task in ["train", "decode"]:
        for attention in SHAPES:
            def rows(side, key):
                return [r[key] for r in raw if (r["task"], r["attention"], r["side"]) == (task, attention, side) and r[key]]
            speed = {side: statistics.median(rows(side, "tokens_per_s")) for side in sides}
            for side in sides:
                memory = rows(side, "peak_rss_mib")
                eager, compiled = (speed[side] / speed[f"torch {mode}"] for mode in ["eager", "compile"])
                lines.append(f"| {task} | {attention} | {side} | {speed[side]:,.0f} | {eager:.2f}x | {compiled:.2f}x | "
                             f"{f'{statistics.median(memory):,.0f}' if memory else ''} |")
    (out / "summary.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
