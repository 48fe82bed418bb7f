"""The host's time of calls whose kernels never run: ``python host_time.py FOLDER``, on one core.

Triton's launcher and C++ call the stub of the driver, which returns at once. So the figures are without the driver's
own time for each launch, and memory comes from the CPU's allocator. They compare the two ways, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import real_launcher
import torch

import normkit
from normkit.kernels import fastpath

ROUNDS, CALLS = 30, 200
LAYERS = {
    "LayerNorm [64, 768]": (lambda: normkit.LayerNorm(768), (64, 768)),
    "RMSNorm [64, 768]": (lambda: normkit.RMSNorm(768), (64, 768)),
    "GroupNorm(8) [8, 64, 14, 14]": (lambda: normkit.GroupNorm(8, 64), (8, 64, 14, 14)),
    "BatchNorm2d [8, 64, 14, 14], training": (lambda: normkit.BatchNorm2d(64), (8, 64, 14, 14)),
    "BatchNorm2d [8, 64, 14, 14], evaluation": (lambda: normkit.BatchNorm2d(64).eval(), (8, 64, 14, 14)),
}


def passes(layer: torch.nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    x = x.clone().requires_grad_()
    dy = torch.ones_like(x)

    def inference() -> object:
        with torch.no_grad():
            return layer(x)

    def both() -> None:
        layer(x).backward(dy)

    return {"no_grad": inference, "forward and backward": both}


def measured(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Microseconds for a call, the least of interleaved rounds."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, call in ways.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            best[name] = min(best[name], (time.perf_counter() - start) / CALLS * 1e6)
    return best


def python_alone(call: Callable[[], object]) -> Callable[[], object]:
    def through_python() -> object:
        norm, fastpath.norm = fastpath.norm, lambda *_: None
        try:
            return call()
        finally:
            fastpath.norm = norm

    return through_python


def main() -> None:
    torch.set_num_threads(1)
    callback = real_launcher.connect()
    tiny = passes(torch.nn.LayerNorm(8), torch.randn(2, 8))
    for name, (make, shape) in LAYERS.items():
        for kind, call in passes(make(), torch.randn(shape)).items():
            slow = python_alone(call)
            for _ in range(4):
                call(), slow()
            real_launcher.library.stub_callback(None)
            ways = {"C++": call, "Python": slow, "torch.nn.LayerNorm [2, 8] on the CPU": tiny[kind]}
            print(f"{name}, {kind}:", *(f"{way} {us:.1f}" for way, us in measured(ways).items()), sep="  ")
            real_launcher.library.stub_callback(callback)


if __name__ == "__main__":
    main()
