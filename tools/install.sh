#!/bin/sh
# Make a virtual environment and install this checkout into it, editable.
# Without an NVIDIA GPU torch is pinned to its CPU build, so that no CUDA package is downloaded.
# usage: tools/install.sh PYTHON VENV TARGET       TARGET: . or .[test]
set -eu
python=$1
venv=$2
target=$3

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check"

if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    exec $pip install -q -e "$target"
fi
constraints="$(dirname "$0")/../constraints-cpu.txt"
if ! $venv/bin/python -c 'import torch' 2>/dev/null; then
    # The package index has no CPU-only build for x86-64 Linux; PyTorch's own index does.
    $pip install -q -c "$constraints" torch 2>/dev/null ||
        $pip install -q -c "$constraints" --index-url https://download.pytorch.org/whl/cpu torch
fi
exec $pip install -q -c "$constraints" -e "$target"
