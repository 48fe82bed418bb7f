"""Padding, a residual and an activation in the pass of the norm, compared with the same composed of torch's functions.

``python -m benchmarks.extras``: images and tokens of 25 and of half a megabyte, a mask also of 100 MB and more, both
layouts, float32 and bfloat16, forward without gradients and forward with backward. Numbers go to
benchmarks/results/extras.json.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.contestants import groups
from benchmarks.speed.measure import RESULTS, keep_memory, machine, quiet
from normkit import functional as N

LARGE = (32, 64, 112, 112), (32, 512, 2048)
IMAGES, TOKENS = ((8, 32, 28, 28), (32, 64, 56, 56), LARGE[0]), ((4, 128, 512), (16, 512, 768), LARGE[1])
EPS = 1e-5
REDUCED = {"batch_norm": (0, 2, 3), "instance_norm": (2, 3), "layer_norm": (2,), "rms_norm": (2,)}


def _torch_norm(method: str, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    match method:
        case "batch_norm":
            return F.batch_norm(x, None, None, w, b, training=True)
        case "instance_norm":
            return F.instance_norm(x, None, None, w, b)
        case "group_norm":
            return F.group_norm(x, groups(x.shape[1]), w, b)
        case "layer_norm":
            return F.layer_norm(x, x.shape[-1:], w, b)
        case _:
            return F.rms_norm(x, x.shape[-1:], w, EPS)


def _normkit(method: str, x: Tensor, w: Tensor, b: Tensor, **extras: Any) -> Any:
    match method:
        case "batch_norm":
            return N.batch_norm(x, None, None, w, b, training=True, **extras)
        case "instance_norm":
            return N.instance_norm(x, None, None, w, b, **extras)
        case "group_norm":
            return N.group_norm(x, groups(x.shape[1]), w, b, **extras)
        case "layer_norm":
            return N.layer_norm(x, x.shape[-1:], w, b, **extras)
        case _:
            return N.rms_norm(x, x.shape[-1:], w, EPS, **extras)


def _masked_by_torch(method: str, x: Tensor, w: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """The usual formula: sums over the valid elements, divided by their number."""
    image = x.dim() == 4
    shape = x.shape
    if method == "group_norm":
        x, mask = x.unflatten(1, (groups(shape[1]), -1)), mask.unsqueeze(1)
    reduced = (2, 3, 4) if method == "group_norm" else REDUCED[method]
    valid = mask.to(x.dtype)
    count = valid.expand_as(x).sum(reduced, keepdim=True).clamp(min=1)
    mean = 0 if method == "rms_norm" else (x * valid).sum(reduced, keepdim=True) / count
    var = ((x - mean).square() * valid).sum(reduced, keepdim=True) / count
    y = ((x - mean) * (var + EPS).rsqrt()).reshape(shape)
    w, b = (t[:, None, None] if image else t for t in (w, b))
    y = y * w if method == "rms_norm" else y * w + b
    return y * valid.reshape(mask.shape if method != "group_norm" else mask.squeeze(1).shape)


CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "relu": (
        lambda m, x, w, b, **_: F.relu(_torch_norm(m, x, w, b)),
        lambda m, x, w, b, **_: _normkit(m, x, w, b, activation="relu"),
    ),
    "silu": (
        lambda m, x, w, b, **_: F.silu(_torch_norm(m, x, w, b)),
        lambda m, x, w, b, **_: _normkit(m, x, w, b, activation="silu"),
    ),
    "gelu": (
        lambda m, x, w, b, **_: F.gelu(_torch_norm(m, x, w, b)),
        lambda m, x, w, b, **_: _normkit(m, x, w, b, activation="gelu"),
    ),
    "residual": (
        lambda m, x, w, b, r, **_: (_torch_norm(m, s := x + r, w, b), s),
        lambda m, x, w, b, r, **_: _normkit(m, x, w, b, residual=r, return_residual=True),
    ),
    "mask": (
        lambda m, x, w, b, mask, **_: _masked_by_torch(m, x, w, b, mask),
        lambda m, x, w, b, mask, **_: _normkit(m, x, w, b, mask=mask[:, 0] if x.dim() == 4 else mask[..., 0]),
    ),
}


CASES["mask, 100 MB"] = CASES["mask"]


def main() -> None:
    """Time all cells, print each as torch's time over normkit's, and the geometric means."""
    keep_memory()
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.15
    rows = []
    cells = [
        *itertools.product(("batch_norm", "instance_norm", "group_norm"), IMAGES, ("contiguous", "channels_last")),
        *itertools.product(("layer_norm", "rms_norm"), TOKENS, ("contiguous",)),
    ]
    for (method, shape, layout), dtype, backward in itertools.product(
        cells, (torch.float32, torch.bfloat16), (False, True)
    ):
        for case, sides in CASES.items():
            if (shape in LARGE) != case.endswith("MB"):
                continue
            calls = {
                name: _call(side, method, shape, layout, dtype, backward)
                for name, side in zip(("torch", "normkit"), sides, strict=True)
            }
            calls["plain"] = _call(lambda m, x, w, b, **_: _normkit(m, x, w, b), method, shape, layout, dtype, backward)
            times, was_quiet = quiet(calls, seconds)
            way = "forward+backward" if backward else "forward"
            name = f"{method} {list(shape)} {layout} {str(dtype).removeprefix('torch.')} {case} {way}"
            rows.append({"name": name, "case": case, "milliseconds": times, "quiet": was_quiet})
            over, plain = times["torch"] / times["normkit"], times["normkit"] / times["plain"]
            print(f"{over:5.2f} x torch composed, {plain:4.2f} of the plain norm's time  {name}", flush=True)
    table = summary(rows)
    print(table)
    page = RESULTS.parents[1] / "docs" / "extras.md"
    before, *_ = page.read_text().split("<!-- extras -->\n")
    facts = f"One run of {machine()['date']} on {machine()['cpu']}, {machine()['threads']} threads:"
    page.write_text(f"{before}<!-- extras -->\n{facts}\n\n{table}\n<!-- /extras -->\n")
    (RESULTS / "extras.json").write_text(json.dumps({"machine": machine(), "cells": rows}, indent=1) + "\n")


def summary(rows: list[dict[str, Any]]) -> str:
    """A line for each case, as a Markdown table."""
    lines = [
        "| | cells | speed-up over composed torch | slower | worst | time relative to the plain norm |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for case in [*CASES, "all"]:
        times = [row["milliseconds"] for row in rows if case in (row["case"], "all") and row["quiet"]]
        if not times:
            continue
        over = [t["torch"] / t["normkit"] for t in times]
        plain = [t["normkit"] / t["plain"] for t in times]
        slower = sum(ratio < 0.95 for ratio in over)
        means = [f"{statistics.geometric_mean(ratios):.2f}" for ratios in (over, plain)]
        numbers = f"{means[0]} | {slower} | {min(over):.2f} | {means[1]}"
        lines.append(f"| {case} | {len(times)} | {numbers} |")
    return "\n".join(lines)


def _call(
    side: Callable[..., Any], method: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype, backward: bool
) -> Callable[[], object]:
    torch.manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        t = torch.randn(sizes).to(dtype)
        return t.contiguous(memory_format=torch.channels_last) if layout == "channels_last" and t.dim() == 4 else t

    channels = shape[1] if len(shape) == 4 else shape[-1]
    x, r, dy = (draw(*shape) for _ in range(3))
    w, b = draw(channels), draw(channels)
    mask = torch.rand(shape[0], 1, *shape[2:]) > 0.2 if len(shape) == 4 else torch.rand(*shape[:2], 1) > 0.2
    leaves = [t.requires_grad_(backward) for t in (x, w, b, r)]

    def forward() -> Any:
        return side(method, x, w, b, r=r, mask=mask)

    if not backward:

        def infer() -> Any:
            with torch.no_grad():
                return forward()

        return infer

    def train() -> object:
        out = forward()
        ends = out if isinstance(out, tuple) else (out,)
        return torch.autograd.grad(ends, leaves, [dy] * len(ends), allow_unused=True)

    return train


if __name__ == "__main__":
    main()
