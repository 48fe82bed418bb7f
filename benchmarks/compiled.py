"""Compares, in a compiled graph, normkit's operator with a formula that Inductor fuses with neighbouring operations.

``python -m benchmarks.compiled``: a norm alone and with its usual neighbours, each compiled as one graph.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.contestants import groups
from benchmarks.speed.measure import RESULTS, keep_memory, machine, quiet
from normkit import functional as N

IMAGES, TOKENS = ((8, 32, 32, 32), (32, 64, 56, 56)), ((256, 256), (8192, 768))
Norm = Callable[[Tensor, Tensor, Tensor], Tensor]
NORMS: dict[str, tuple[Norm, Norm]] = {
    "batch_norm": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        lambda x, w, b: N.batch_norm(x, None, None, w, b, training=True),
    ),
    "group_norm": (
        lambda x, w, b: F.group_norm(x, groups(x.shape[1]), w, b),
        lambda x, w, b: N.group_norm(x, groups(x.shape[1]), w, b),
    ),
    "layer_norm": (
        lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
        lambda x, w, b: N.layer_norm(x, x.shape[-1:], w, b),
    ),
    "rms_norm": (lambda x, w, b: F.rms_norm(x, x.shape[-1:], w), lambda x, w, b: N.rms_norm(x, x.shape[-1:], w)),
}
NEIGHBOURS: dict[str, Callable[[Norm, Tensor, Tensor, Tensor], Tensor]] = {
    "alone": lambda norm, x, w, b: norm(x, w, b),
    "then relu": lambda norm, x, w, b: norm(x, w, b).relu(),
    "residual, norm, gelu": lambda norm, x, w, b: F.gelu(norm(x + x.detach(), w, b)),
}


def main() -> None:
    """Time both and print the time of normkit's operator divided by Inductor's time."""
    keep_memory()
    rows = []
    for method, sides in NORMS.items():
        for shape in IMAGES if method in ("batch_norm", "group_norm") else TOKENS:
            for neighbours, build in NEIGHBOURS.items():
                for backward in (False, True):
                    torch.compiler.reset()
                    calls = {
                        name: _call(build, norm, shape, backward)
                        for name, norm in zip(("formula", "operator"), sides, strict=True)
                    }
                    times, was_quiet = quiet(calls, 0.3)
                    what = f"{method} {list(shape)} {neighbours}, {'forward+backward' if backward else 'forward'}"
                    rows.append({"name": what, "neighbours": neighbours, "milliseconds": times, "quiet": was_quiet})
                    print(f"{times['operator'] / times['formula']:.2f}  {what}", flush=True)
    for neighbours in NEIGHBOURS:
        ratios = [
            row["milliseconds"]["operator"] / row["milliseconds"]["formula"]
            for row in rows
            if row["neighbours"] == neighbours and row["quiet"]
        ]
        mean, worst = statistics.geometric_mean(ratios), max(ratios)
        print(f"{neighbours}: operator / formula {mean:.2f}, worst {worst:.2f}, {len(ratios)} cells")
    (RESULTS / "compiled.json").write_text(json.dumps({"machine": machine(), "cells": rows}, indent=1) + "\n")


def _call(
    build: Callable[[Norm, Tensor, Tensor, Tensor], Tensor], norm: Norm, shape: tuple[int, ...], backward: bool
) -> Callable[[], object]:
    torch.manual_seed(0)
    x, dy = torch.randn(shape), torch.randn(shape)
    c = shape[1]
    leaves = [t.requires_grad_(backward) for t in (x, torch.rand(c), torch.rand(c))]
    graph = torch.compile(lambda x, w, b: build(norm, x, w, b), fullgraph=True, dynamic=False)
    if not backward:
        return lambda: graph(*leaves)
    return lambda: torch.autograd.grad(graph(*leaves), leaves, dy, allow_unused=True)


if __name__ == "__main__":
    main()
