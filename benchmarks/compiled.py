"""Compares, in a compiled graph, normkit's operator with a formula that Inductor fuses with neighbouring operations.

``python -m benchmarks.compiled``: a norm alone and with its usual neighbours, each compiled as one graph.

``--match TEXT`` takes the cells whose name has all words of the text. ``--warm`` only compiles; torch keeps it on disk.
``--resume`` leaves out the cells that the file of results has from this version of torch, and keeps them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.contestants import groups
from benchmarks.speed.measure import RESULTS, keep_memory, machine, quiet
from normkit import functional as N

IMAGES, TOKENS = ((8, 32, 32, 32), (32, 64, 56, 56)), ((256, 256), (8192, 768))
FILE = RESULTS / "compiled.json"
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
Block = Callable[[Norm, Tensor, Tensor, Tensor, Tensor], Any]
"""norm, x, another tensor like x, weight, bias"""


def add_then_norm(norm: Norm, x: Tensor, other: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    total = x + other
    return norm(total, w, b), total


NEIGHBOURS: dict[str, Block] = {
    "alone": lambda norm, x, other, w, b: norm(x, w, b),
    "then relu": lambda norm, x, other, w, b: norm(x, w, b).relu(),
    "then silu": lambda norm, x, other, w, b: F.silu(norm(x, w, b)),
    "residual, norm, gelu": lambda norm, x, other, w, b: F.gelu(norm(x + other, w, b)),
    "add, norm, both returned": add_then_norm,
    "norm, residual, relu": lambda norm, x, other, w, b: F.relu(norm(x, w, b) + other),
    "norm, gate silu": lambda norm, x, other, w, b: norm(x, w, b) * F.silu(other),
}


class Cell(NamedTuple):
    """One measurement."""

    method: str
    shape: tuple[int, ...]
    neighbours: str
    backward: bool

    @property
    def name(self) -> str:
        passes = "forward+backward" if self.backward else "forward"
        return f"{self.method} {list(self.shape)} {self.neighbours}, {passes}"

    def calls(self) -> dict[str, Callable[[], object]]:
        torch.compiler.reset()
        sides = zip(("formula", "operator"), NORMS[self.method], strict=True)
        return {name: self._call(norm) for name, norm in sides}

    def _call(self, norm: Norm) -> Callable[[], object]:
        torch.manual_seed(0)
        build = NEIGHBOURS[self.neighbours]
        x, other, dy = (torch.randn(self.shape) for _ in range(3))
        c = self.shape[1]
        leaves = [t.requires_grad_(self.backward) for t in (x, other, torch.rand(c), torch.rand(c))]
        graph = torch.compile(lambda *tensors: build(norm, *tensors), fullgraph=True, dynamic=False)
        if not self.backward:
            return lambda: graph(*leaves)

        def both() -> object:
            out = graph(*leaves)
            out = out if isinstance(out, tuple) else (out,)
            return torch.autograd.grad(out, leaves, [dy] * len(out), allow_unused=True)

        return both


def cells() -> Iterator[Cell]:
    for method in NORMS:
        for shape in IMAGES if method in ("batch_norm", "group_norm") else TOKENS:
            for neighbours in NEIGHBOURS:
                for backward in (False, True):
                    yield Cell(method, shape, neighbours, backward)


def main() -> None:
    """Time both and print the time of normkit's operator divided by Inductor's time."""
    parser = argparse.ArgumentParser(description="A compiled norm and its neighbours: normkit against torch's formula.")
    parser.add_argument("--match", default="", help="only cells whose name has all of these words")
    parser.add_argument("--seconds", type=float, default=0.3, help="time for each cell")
    parser.add_argument("--warm", action="store_true", help="only compile")
    parser.add_argument("--resume", action="store_true", help="keep the cells that have been measured")
    options = parser.parse_args()
    keep_memory()
    before: list[dict[str, Any]] = []
    if options.resume and FILE.exists():
        kept = json.loads(FILE.read_text())
        before = kept["cells"] if kept["machine"]["torch"] == torch.__version__ else []
    known = {row["name"] for row in before}
    rows = before
    for cell in cells():
        if cell.name in known or not all(word in cell.name for word in options.match.split()):
            continue
        calls = cell.calls()
        if options.warm:
            for call in calls.values():
                call()
            continue
        times, was_quiet = quiet(calls, options.seconds)
        rows.append({"name": cell.name, "neighbours": cell.neighbours, "milliseconds": times, "quiet": was_quiet})
        print(f"{times['operator'] / times['formula']:.2f}  {cell.name}", flush=True)
        FILE.write_text(json.dumps({"machine": machine(), "cells": rows}, indent=1) + "\n")
    summarize(rows)


def summarize(rows: list[dict[str, Any]]) -> None:
    """Print, for each kind of neighbours, the geometric mean and the worst of operator / formula."""
    for neighbours in NEIGHBOURS:
        ratios = [
            row["milliseconds"]["operator"] / row["milliseconds"]["formula"]
            for row in rows
            if row["neighbours"] == neighbours and row["quiet"]
        ]
        if ratios:
            mean, worst = statistics.geometric_mean(ratios), max(ratios)
            print(f"{neighbours}: operator / formula {mean:.2f}, worst {worst:.2f}, {len(ratios)} cells")


if __name__ == "__main__":
    main()
