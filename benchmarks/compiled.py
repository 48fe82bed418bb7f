"""Compares, in a compiled graph, normkit's operator with a formula that Inductor fuses with neighbouring operations.

``python -m benchmarks.compiled``: a norm alone and with its usual neighbours, each compiled as one graph.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from benchmarks.speed import saved
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


def main(
    match: Annotated[str, typer.Option(help="only cells whose name has a word that begins with each of these")] = "",
    seconds: Annotated[float, typer.Option(help="seconds for each cell")] = 0.3,
    save: Annotated[Path, typer.Option(help="result file, written after every cell")] = RESULTS / "compiled.json",
    warm: Annotated[bool, typer.Option("--warm", help="only compile, which fills the cache on disk")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="keep what the file has, unless the machine was not quiet")
    ] = False,
) -> None:
    """Time both and print the time of normkit's operator divided by Inductor's time."""
    every = list(cells())
    chosen = saved.matching(every, match)
    results: dict[str, Any] = {"machine": machine(), "cells": []}
    rows = results["cells"] = saved.kept(save, results["machine"], chosen, resume=resume)
    if not (resume or warm) and len(chosen) < len(every):
        saved.refuse_part(save, RESULTS)
    known = {row["name"] for row in rows}
    for cell in chosen:
        if cell.name in known:
            continue
        calls = cell.calls()
        if warm:
            for call in calls.values():
                call()
            continue
        times, was_quiet = quiet(calls, seconds)
        rows.append({"name": cell.name, "neighbours": cell.neighbours, "milliseconds": times, "quiet": was_quiet})
        print(f"{times['operator'] / times['formula']:.2f}  {cell.name}", flush=True)
        saved.store(save, results)
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
    keep_memory()
    typer.run(main)
