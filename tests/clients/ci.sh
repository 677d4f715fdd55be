#!/usr/bin/env bash
# Tries real clients, and the page in a browser, against the server where they can be had; says so where not.
# usage: ci.sh KEYFOLD; KEYFOLD_REAL_MODELS may name a folder with SmolLM2, else a tiny model is trained.
set -euo pipefail
keyfold=$(realpath "${1:?usage: ci.sh KEYFOLD}")
here=$(cd "$(dirname "$0")" && pwd)
venv=${KEYFOLD_CLIENTS:-$HOME/.cache/keyfold/clients}
skip() { echo "skipped: $*"; exit 0; }
command -v python3 >/dev/null || skip "python3 is not installed"
if ! "$venv/bin/python" -c 'import openai, lm_eval, transformers' 2>/dev/null; then
  python3 -m venv "$venv" 2>/dev/null || skip "python3 has no venv"
  timeout 300 "$venv/bin/pip" install -q openai 'lm_eval[api]' transformers >/dev/null 2>&1 \
    || skip "openai and lm_eval do not install from PyPI here"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=${KEYFOLD_REAL_MODELS:-}/smollm2-135m-instruct
if [ ! -e "$model/config.json" ]; then
  "$keyfold" train "$here/tiny.toml" --out "$work/run" >"$work/train.log" 2>&1 || { cat "$work/train.log"; exit 1; }
  model=$(ls -d "$work"/run/checkpoints/step-*)
fi
"$venv/bin/python" "$here/run.py" --keyfold "$keyfold" --model "$model" >"$work/clients.log" 2>&1 \
  || { cat "$work/clients.log"; exit 1; }
grep -E '^(openai|lm_eval|skipped)' "$work/clients.log"
# The page needs a model that has a chat template, and a browser.
[ -n "${KEYFOLD_REAL_MODELS:-}" ] || skip "the page: KEYFOLD_REAL_MODELS names no folder with SmolLM2"
chromium=$(command -v chromium || command -v chromium-browser) || skip "the page: chromium is not installed"
"$venv/bin/python" -c 'import playwright' 2>/dev/null || "$venv/bin/pip" install -q playwright >/dev/null 2>&1 \
  || skip "the page: playwright does not install from PyPI here"
"$venv/bin/python" "$here/../page/run.py" --keyfold "$keyfold" --model "$model" --chromium "$chromium" --out "$work"
