#!/usr/bin/env bash
# Everything that one GPU can check in five minutes, with the torch that is installed: tests, graphs, calls, cells, models.
#
#   benchmarks/gpu_check.sh                  # results: benchmarks/results/gpu-check.json
#   benchmarks/gpu_check.sh --minutes 8 --save FOLDER
#   benchmarks/gpu_check.sh --wheels FOLDER  # packages that are missing, from these wheels
#   benchmarks/gpu_check.sh --dry            # without a GPU: tiny shapes on the CPU, to try the script itself
#
# It needs no network. Wheels of other libraries are made by: pip download --no-deps -d FOLDER expecttest liger-kernel
# src/normkit/_native.abi3.so is used if it has been built elsewhere: then only the fast path is built, in half a minute.
# What was compiled is kept in a folder under ${TMPDIR:-/tmp}, so a second run starts sooner.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
work=${TMPDIR:-/tmp}/normkit-gpu-check-$(id -u)
export PYTHONPATH=$root/src:$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# One cache for all processes and runs: compiling takes most of the time.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$work/triton} TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$work/inductor}

if ! "$python" -c 'import torch' >/dev/null 2>&1; then
  echo "gpu_check.sh needs a Python that has torch, got $python: set PYTHON, for instance PYTHON=.venv/bin/python" >&2
  exit 1
fi

options=()
while (($#)); do
  if [[ $1 == --wheels ]]; then
    wheels=${2:?--wheels needs a folder}
    rm -rf "$work/site"
    "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$work/site" "$wheels"/*.whl || exit 1
    export PYTHONPATH=$PYTHONPATH:$work/site
    shift 2
  else
    options+=("$1")
    shift
  fi
done

"$python" -m benchmarks.gpu.check "${options[@]}"
