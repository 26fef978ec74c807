#!/usr/bin/env bash
# Installs the CUDA 13.0 compiler from PyPI's wheels into .cuda/ of this checkout (270 MB), where the build finds it.
# Needs python3 with pip; no root, no GPU, no driver.
set -euo pipefail
cd "$(dirname "$0")/.."
target=.cuda
nvcc=$target/nvidia/cu13/bin/nvcc
if [ -x "$nvcc" ]; then
  echo "already there: $nvcc"
else
  rm -rf "$target.partial"
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$target.partial" \
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
  rm -rf "$target"
  mv "$target.partial" "$target"
fi
"$nvcc" --version | tail -n 2 | head -n 1
