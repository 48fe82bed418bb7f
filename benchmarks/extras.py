"""What functions do in the pass of the norm, compared with the same composed of torch's functions.

``python -m benchmarks.extras [seconds] [case ...]``: images and tokens of 25 and of half a megabyte, a mask also of
100 MB and more, both layouts, float32 and bfloat16, forward without gradients and forward with backward. On a GPU, if
there is one. Without names of cases, numbers go to benchmarks/results/extras.json, or extras-gpu.json, and those of a
CPU to the pages in docs/en and docs/zh.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from benchmarks.composed import CASES, ROWS, Case, Side, by_normkit, operands
from benchmarks.gpu.clock import GpuClock
from benchmarks.speed.measure import RESULTS, Call, keep_memory, machine, quiet
from benchmarks.speed.pages import filled
from normkit.catalog import LANGUAGES, Text

LARGE = (32, 64, 112, 112), (32, 512, 2048)
IMAGES, TOKENS = ((8, 32, 28, 28), (32, 64, 56, 56), LARGE[0]), ((4, 128, 512), (16, 512, 768), LARGE[1])
GPU_IMAGES, GPU_TOKENS = ((32, 64, 56, 56), (64, 256, 56, 56)), ((32, 256, 1152), (8, 2048, 4096))
MARKERS = "<!-- extras -->\n", "<!-- /extras -->\n"
COLUMNS = (
    Text("", ""),
    Text("cells", "项数"),
    Text("speed-up over composed torch", "相对 torch 组合的加速比"),
    Text("slower", "更慢"),
    Text("worst", "最差"),
    Text("time relative to the plain norm", "时间与单独的归一化之比"),
    Text("and to the bytes added", "再计入增加的字节数"),
)
MEASURED = Text("One run of {date} on {cpu}, {threads} threads:", "{date} 的一次测量，{cpu}，{threads} 个线程：")
CHINESE = {
    "residual": "残差",
    "mask": "掩码",
    "mask, 100 MB": "掩码，100 MB",
    "cast before": "先转换 dtype",
    "zero-centred weight": "以 0 为中心的 weight",
    "strided rows": "行间有间隔",
    "gate": "门控",
    "gate first": "先门控",
    "skip": "skip",
    "skip and relu": "skip 与 relu",
    "modulation": "调制",
    "all": "全部",
}
"""Names of cases; activations have the same in both languages."""


def main() -> None:
    """Time all cells, print each as torch's time over normkit's, and the geometric means."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        keep_memory()
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.15
    asked = sys.argv[2:] or list(CASES)
    time = _gpu_times if on_gpu else lambda calls: quiet(calls, seconds)
    images, tokens = (GPU_IMAGES, GPU_TOKENS) if on_gpu else (IMAGES, TOKENS)
    cells = [
        *itertools.product(("batch_norm", "instance_norm", "group_norm"), images, ("contiguous", "channels_last")),
        *itertools.product(ROWS, tokens, ("contiguous",)),
    ]
    rows = []
    for cell, dtype, backward in itertools.product(cells, (torch.float32, torch.bfloat16), (False, True)):
        method, shape, layout = cell
        for name in asked:
            case = CASES[name]
            if (not on_gpu and (shape in LARGE) != case.large) or method not in (case.methods or (method,)):
                continue
            row = _timed(name, case, (method, shape, layout, dtype, backward), time)
            rows.append(row)
            print(_line(row), flush=True)
    print(summary(rows))
    if len(sys.argv) > 2:
        return
    results = {"machine": machine(), "cells": rows}
    name = "extras-gpu.json" if on_gpu else "extras.json"
    (RESULTS / name).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if not on_gpu:
        show(results)


def show(results: dict[str, Any]) -> None:
    """Replace the part between the markers of the pages."""
    for lang in LANGUAGES:
        page = RESULTS.parents[1] / "docs" / lang / "engine" / "extras.md"
        text = filled(page.read_text(encoding="utf-8"), part(results, lang), MARKERS)
        page.write_text(text, encoding="utf-8")


def part(results: dict[str, Any], lang: str) -> str:
    """What a page shows of the results."""
    return f"{MEASURED.to(lang).format(**results['machine'])}\n\n{summary(results['cells'], lang)}\n"


Cell = tuple[str, tuple[int, ...], str, torch.dtype, bool]
Time = Callable[[Mapping[str, Call]], tuple[dict[str, float], bool]]
"""Milliseconds of calls, and whether nothing disturbed them."""


def _timed(
    name: str, case: Case, cell: Cell, time: Callable[[Mapping[str, Call]], tuple[dict[str, float], bool]]
) -> Any:
    method, shape, layout, dtype, backward = cell
    plain: Side = lambda m, o: by_normkit(m, o.x, o.w, o.b)  # noqa: E731
    calls = {
        "torch": _call(case.torch, cell, strided=case.strided),
        "normkit": _call(case.normkit, cell, strided=case.strided),
        "plain": _call(plain, cell, strided=False),
        "copy": _copy(shape, dtype),
    }
    times, was_quiet = time(calls)
    way = "forward+backward" if backward else "forward"
    title = f"{method} {list(shape)} {layout} {str(dtype).removeprefix('torch.')} {name} {way}"
    # A copy reads one tensor and writes another.
    times["limit"] = times["plain"] + case.moved[backward] * times.pop("copy") / 2
    return {"name": title, "case": name, "milliseconds": times, "quiet": was_quiet}


def _line(row: dict[str, Any]) -> str:
    t = row["milliseconds"]
    over, limit = t["torch"] / t["normkit"], t["normkit"] / t["limit"]
    return f"{over:5.2f} x torch composed, {limit:4.2f} of the plain norm and the bytes added  {row['name']}"


def summary(rows: list[dict[str, Any]], lang: str = "en") -> str:
    """A line for each case, as a Markdown table."""
    lines = [f"| {' | '.join(name.to(lang) for name in COLUMNS)} |", "|---|--:|--:|--:|--:|--:|--:|"]
    for case in [*CASES, "all"]:
        times = [row["milliseconds"] for row in rows if case in (row["case"], "all") and row["quiet"]]
        if not times:
            continue
        over = [t["torch"] / t["normkit"] for t in times]
        slower = sum(ratio < 0.95 for ratio in over)
        plain, limit = ([t["normkit"] / t[key] for t in times] for key in ("plain", "limit"))
        means = [f"{statistics.geometric_mean(ratios):.2f}" for ratios in (over, plain, limit)]
        label = CHINESE.get(case, case) if lang == "zh" else case
        lines.append(f"| {label} | {len(times)} | {means[0]} | {slower} | {min(over):.2f} | {means[1]} | {means[2]} |")
    return "\n".join(lines)


def _call(side: Side, cell: Cell, *, strided: bool) -> Call:
    method, shape, layout, dtype, backward = cell
    o = operands(shape, layout, dtype, "cuda" if torch.cuda.is_available() else "cpu", strided=strided)
    leaves = [t.requires_grad_(backward) for t in o.leaves()]
    if not backward:

        def infer() -> Any:
            with torch.no_grad():
                return side(method, o)

        return infer
    dy = torch.randn_like(o.residual)

    def train() -> object:
        out = side(method, o)
        ends = out if isinstance(out, tuple) else (out,)
        return torch.autograd.grad(ends, leaves, [dy] * len(ends), allow_unused=True)

    return train


def _copy(shape: tuple[int, ...], dtype: torch.dtype) -> Call:
    source = torch.ones(shape, dtype=dtype, device="cuda" if torch.cuda.is_available() else "cpu")
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


_gpu_clock = cache(GpuClock)


def _gpu_times(calls: Mapping[str, Call]) -> tuple[dict[str, float], bool]:
    """Medians by the GPU's clock, and whether all launches were queued before each call began."""
    clock = _gpu_clock()
    ahead = {name: clock.ahead(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    all_queued = True
    for _ in range(7):
        for name, call in calls.items():
            milliseconds, queued = clock.device(call, ahead[name])
            times[name].append(milliseconds)
            all_queued &= queued
    return {name: statistics.median(values) for name, values in times.items()}, all_queued


if __name__ == "__main__":
    main()
