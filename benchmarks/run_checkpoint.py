"""Runs a published checkpoint with Keyfold and with transformers on the CPU in turn, and writes medians and ratios.

usage: run_checkpoint.py --keyfold PATH --torch-python PATH --model DIR --out DIR [--rounds 3] [--threads 2]
                         [--prompt 512] [--context 128] [--tokens 128] [--tasks decode,prefill]
Decoding goes on after --context tokens; the prompt that is timed has --prompt. DIR gets raw.json (every measurement with
its command, model folders by name) and README.md. Use an otherwise idle machine.
"""
import argparse
import datetime
import json
import pathlib
import statistics

from run_cpu import HERE, output, processor

TASKS = ["decode", "prefill"]


def keyfold(o, task, dtype, precision):
    command = [o.keyfold, "--threads", str(o.threads), "--matmul-precision", precision, "bench", task, "--json",
               "--model", o.model, "--dtype", dtype]
    command += ["--prompt", str(o.context), "--tokens", str(o.tokens)] if task == "decode" else ["--prompt", str(o.prompt)]
    row = json.loads(output(command))[0]
    return command, row["tokens_per_s"], row.get("bandwidth_share")


def transformers(o, task, dtype):
    prompt, tokens = (o.context, o.tokens) if task == "decode" else (o.prompt, 2)
    command = [o.torch_python, str(HERE / "peers" / "hf_cpu.py"), o.model, "--dtype", dtype, "--threads", str(o.threads),
               "--prompt", str(prompt), "--tokens", str(tokens)]
    row = json.loads(output(command))
    return command, row["tokens_per_s"] if task == "decode" else prompt / row["prefill_s"], None


def main():
    p = argparse.ArgumentParser()
    for name in ["keyfold", "torch-python", "model", "out"]:
        p.add_argument("--" + name, required=True)
    for name, value in dict(rounds=3, threads=2, prompt=512, context=128, tokens=128).items():
        p.add_argument("--" + name, type=int, default=value)
    p.add_argument("--tasks", default=TASKS, type=lambda text: [task for task in TASKS if task in text.split(",")])
    o = p.parse_args()
    model = pathlib.Path(o.model).name
    sides = {"keyfold bf16": lambda t: keyfold(o, t, "bf16", "highest"),
             "keyfold bf16, medium": lambda t: keyfold(o, t, "bf16", "medium"),
             "keyfold f32": lambda t: keyfold(o, t, "f32", "highest"),
             "transformers bf16": lambda t: transformers(o, t, "bfloat16"),
             "transformers f32": lambda t: transformers(o, t, "float32")}
    raw = []
    for number in range(o.rounds):
        for task in o.tasks:
            for side, run in sides.items():
                command, speed, share = run(task)
                command = " ".join([pathlib.Path(command[0]).name, *command[1:]]).replace(o.model, model)
                command = command.replace(str(HERE), "benchmarks")
                raw.append(dict(round=number, task=task, side=side, tokens_per_s=speed, bandwidth_share=share, command=command))
                print(raw[-1], flush=True)
    versions = "import torch, transformers; print(torch.__version__, transformers.__version__)"
    torch, library = output([o.torch_python, "-c", versions]).split()
    facts = dict(date=str(datetime.date.today()), commit=output(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]),
                 machine=processor(), threads=o.threads, model=model, torch=torch, transformers=library)
    lines = [f"# {model} on the CPU, {facts['date']}", "", f"{facts['machine']}; {o.threads} threads; torch {torch}, "
             f"transformers {library}; commit {facts['commit']}; medians of {o.rounds} rounds, sides in turn. Prompt of "
             f"{o.prompt} tokens; {o.tokens} tokens decoded after {o.context}, one sequence. `medium` rounds activations "
             "to bf16, as transformers does with bf16; without it they are f32 (`highest`, the default).", "",
             "| task | side | tokens/s | of transformers bf16 | of transformers f32 | share of read bandwidth |",
             "|---|---|---:|---:|---:|---:|"]
    for task in o.tasks:
        def median(side, key):
            values = [r[key] for r in raw if (r["task"], r["side"]) == (task, side) and r[key]]
            return statistics.median(values) if values else None
        for side in sides:
            speed, share = median(side, "tokens_per_s"), median(side, "bandwidth_share")
            ratios = [speed / median(f"transformers {dtype}", "tokens_per_s") for dtype in ["bf16", "f32"]]
            lines.append(f"| {task} | {side} | {speed:,.1f} | {ratios[0]:.2f}x | {ratios[1]:.2f}x | "
                         f"{f'{100 * share:.0f} %' if share else ''} |")
    out = pathlib.Path(o.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "raw.json").write_text(json.dumps(dict(facts=facts, rows=raw), indent=1) + "\n")
    (out / "README.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
