"""Draws what `keyfold bench attention` and `run_decode.py` measured on a GPU against the device's ceilings.

usage: plot_roofline.py DIR [--out roofline.svg]
DIR holds attention.json (`keyfold bench attention --device cuda --json`) and raw.json (`run_decode.py`), and may hold capacity.json (raw.json of
`run_decode.py --capacity-only`, another time). Needs matplotlib.
"""
import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = {"Mfa": "MFA", "MfaKr": "MFA-KR", "MfaKrRotate": "MFA-KR, rotated on read", "Mla": "MLA", "Gqa": "GQA", "Tpa": "TPA"}
COLOURS = {"Mfa": "#1f77b4", "MfaKr": "#d62728", "MfaKrRotate": "#ff9896", "Mla": "#2ca02c", "Gqa": "#9467bd", "Tpa": "#e6b800"}
MODEL = {"mfa": "#1f77b4", "mfa-kr": "#d62728", "mla": "#2ca02c", "gqa": "#9467bd", "mha": "#8c564b", "tpa": "#e6b800"}


def face(row, colour):
    """Of a cache in 8 bits the outline alone."""
    return "none" if row["kv_dtype"] == "fp8" else colour


def main():
    p = argparse.ArgumentParser()
    p.add_argument("dir", type=pathlib.Path)
    p.add_argument("--out", default="roofline.svg")
    o = p.parse_args()
    rows = json.loads((o.dir / "attention.json").read_text())
    decode = json.loads((o.dir / "raw.json").read_text())
    if (o.dir / "capacity.json").exists():
        decode["capacity"] += json.loads((o.dir / "capacity.json").read_text())["capacity"]
    copy, matmul = rows[0]["copy_gb_s"], rows[0]["matmul_tflop_s"]
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))

    low, high = 2, 1000
    ridge = matmul * 1e3 / copy
    left.plot([low, ridge, high], [low * copy / 1e3, matmul, matmul], color="black", lw=1,
              label=f"a copy {copy:,.0f} GB/s, a product {matmul:,.0f} TFLOP/s")
    for kind, name in NAMES.items():
        mine = [r for r in rows if r["variant"] == kind and r["tokens"] == 1]
        for i, r in enumerate(mine):
            left.scatter(r["tflop_s"] * 1e3 / r["gb_s"], r["tflop_s"], s=26, label=None if i else name, edgecolors=COLOURS[kind],
                         facecolors=face(r, COLOURS[kind]), zorder=3)
    left.scatter([], [], s=26, edgecolors="grey", facecolors="none", label="hollow: cache in 8 bits")
    left.set(xscale="log", yscale="log", xlim=(low, high), ylim=(4, 1500), xlabel="operations per byte of the cache",
             ylabel="TFLOP/s", title="Attention over a paged cache, one layer")
    left.legend(fontsize=7, loc="lower right")

    shapes = [r for r in decode["speed"]]
    for r in shapes:
        total = r["weight_bytes_per_token"] + r["cache_bytes"]
        colour = MODEL[r["attention"]]
        right.scatter(total / 1e9, r["ms_per_token"], edgecolors=colour, facecolors=face(r, colour), s=30, zorder=3)
        if r["kv_dtype"] == "fp8":
            continue
        right.annotate(f"{r['batch']} x {r['prompt_tokens'] // 1024}K", (total / 1e9, r["ms_per_token"]), fontsize=7,
                       xytext=(5, -9) if r["prompt_tokens"] == 32768 else (-4, 6),
                       ha="left" if r["prompt_tokens"] == 32768 else "right", textcoords="offset points")
    seen = set()
    for r in decode["capacity"]:
        total = r["weight_bytes_per_token"] + r["cache_bytes"]
        label = f"{r['attention']}, largest batches" if r["attention"] not in seen else None
        seen.add(r["attention"])
        colour = MODEL[r["attention"]]
        right.scatter(total / 1e9, r["ms_per_token"], edgecolors=colour, facecolors=face(r, colour), s=30, marker="^", label=label,
                      zorder=3)
    for r in decode["peers"]:
        if r["side"] == "compile+graphs":
            mine = [s for s in shapes if (s["batch"], s["prompt_tokens"]) == (r["batch"], r["context"])][0]
            total = mine["weight_bytes_per_token"] + mine["cache_bytes"]
            right.scatter(total / 1e9, r["ms"], color="grey", s=24, marker="x", zorder=3,
                          label="PyTorch, compiled" if "peer" not in seen else None)
            seen.add("peer")
    xs = [2.5, max(r["weight_bytes_per_token"] + r["cache_bytes"] for r in shapes + decode["capacity"]) / 1e9 * 1.1]
    right.plot(xs, [x / copy * 1e3 for x in xs], color="black", lw=1, label=f"at the speed of a copy, {copy:,.0f} GB/s")
    right.set(xscale="log", yscale="log", xlabel="gigabytes that a step reads: weights and cache", ylabel="milliseconds a step",
              title="Decoding, 1.78B parameters")
    right.legend(fontsize=7, loc="upper left")
    for axes in (left, right):
        axes.grid(True, which="both", lw=0.3, alpha=0.6)
    fig.tight_layout()
    fig.savefig(o.dir / o.out)


main()
