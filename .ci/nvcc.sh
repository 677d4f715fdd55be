#!/usr/bin/env bash
# Gets CUDA 13.0's nvcc from PyPI into a folder (330 MB; no GPU, no root) and prints the exports to eval.
# The versions are pinned together: unpinned, pip mixes parts of different releases.
set -euo pipefail
folder=$(realpath -m "${1:?usage: nvcc.sh FOLDER}")
if ! compgen -G "$folder/lib/python3*/site-packages/nvidia/cu13/bin/nvcc" >/dev/null; then
  python3 -m venv "$folder"
  "$folder/bin/pip" install --quiet nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 >&2
fi
home=$(echo "$folder"/lib/python3*/site-packages/nvidia/cu13)
echo "export CUDA_HOME=$home; export PATH=$home/bin:\$PATH"
