#!/usr/bin/env bash
# Everything that one GPU can check in five minutes, with the torch that is installed: tests, graphs, calls, cells, models.
#
#   benchmarks/gpu_check.sh                  # results: benchmarks/results/gpu-check.json, or $OUT/gpu-check.json
#   benchmarks/gpu_check.sh --minutes 8
#   benchmarks/gpu_check.sh --dry            # without a GPU: tiny shapes on the CPU, to try the script itself
#
# It needs no network. Packages that are missing are installed from wheels in the folder .whl, if there is one; and what
# src/normkit/_native.abi3.so has been built elsewhere is used, so that only the fast path is built, in half a minute:
#   pip download --no-deps -d .whl expecttest liger-kernel
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 1
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$root/src:$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# One cache for all processes: compiling takes most of the time.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$work/triton} TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$work/inductor}

if compgen -G '.whl/*.whl' > /dev/null; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$work/site" .whl/*.whl || exit 1
  export PYTHONPATH=$PYTHONPATH:$work/site
fi

"$python" -m benchmarks.gpu.check "$@"
