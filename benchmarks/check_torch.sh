#!/usr/bin/env bash
# Tests normkit with another torch: makes an environment with it, builds the kernels there, runs the tests that depend on
# torch, prints a row of the table in docs/en/engine/pytorch.md, and deletes all it made. PyPI's builds are CUDA's: 8 GB of disk.
#
#   benchmarks/check_torch.sh 2.12.0
#   PYTHON=python3.13 benchmarks/check_torch.sh 2.14.1 -n 2        # what follows the version goes to pytest
set -euo pipefail

version=${1:?give a version of torch, such as 2.12.0}
shift
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A copy, so that what is built for one torch never meets another.
mkdir "$work/normkit"
git -C "$root" ls-files -z --cached --others --exclude-standard | tar -C "$root" -c --null -T - | tar -x -C "$work/normkit"
cd "$work/normkit"

# torchvision, Triton and setuptools are those that this torch takes; all else is as pinned.
grep -Ev '^(torch|torchvision|triton|setuptools)==' constraints.txt > "$work/constraints.txt"
"${PYTHON:-python3}" -m venv "$work/venv"
bin=$work/venv/bin
pip=("$bin/pip" install --quiet --no-cache-dir --constraint "$work/constraints.txt")
"${pip[@]}" "torch==$version" torchvision setuptools wheel
"${pip[@]}" pytest pytest-xdist hypothesis timm transformers onnx onnxruntime onnxscript tensorboard
"${pip[@]}" --no-build-isolation --editable '.[compare]'

"$bin/python" -c 'import normkit; print(normkit.show_backends())'
tests=(tests/test_imports.py tests/test_contract.py tests/kernels tests/layers tests/transforms tests/tools)
status=0
OMP_NUM_THREADS=1 "$bin/python" -m pytest -p no:cacheprovider "${tests[@]}" "$@" 2>&1 | tee "$work/log" || status=$?
"$bin/python" - "$(tail -n 1 "$work/log")" <<'EOF'
import platform, re, sys
from importlib.metadata import distributions
import torch
from normkit.kernels import fastpath

triton = next((found.version for found in distributions(name="triton")), "none")
path = "in use" if fastpath.in_use else "not in use"
result = re.sub(r" in .*", "", sys.argv[1])
print(f"| {torch.__version__} | {triton} | {platform.python_version()} | {path} | {result} |")
EOF
exit "$status"
