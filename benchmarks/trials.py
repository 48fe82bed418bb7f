"""Trials per minute of `compare`, many copies at once compared with one by one: ``python -m benchmarks.trials``.

The bound is the number of trials per minute if a step consisted of its matrix products and convolutions alone: those of
all copies at once, forward and backward, each by the fastest call of torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.speed import saved, tables
from benchmarks.speed.measure import RESULTS, machine
from benchmarks.speed.pages import filled
from normkit.catalog import LANGUAGES, Text
from normkit.study.claims.workloads import DEEP
from normkit.study.suite import data
from normkit.study.suite.networks import Builder, convnet, mlp
from normkit.study.suite.sequences import recurrent
from normkit.study.task import Task, embedded
from normkit.study.training.design import Design
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Trial

FILE = RESULTS / "trials.json"
METHODS = ("none", "batch_norm", "group_norm", "weight_norm")
STEPS = 200
RATES = (0.003, 0.01)
"""So low that no run ends early because its loss is infinite."""
REPEATS = 5
TRAINER = Trainer()
MARKS = ("<!-- trials -->", "<!-- /trials -->")
ROOT = RESULTS.parent.parent
HEADER = (
    Text("network", "网络"),
    Text("batch", "批大小"),
    Text("times one by one", "与逐个训练之比"),
    Text("of the bound", "达到上限的比例"),
)
NAMES = (
    Text("CNN of the comparison", "比较所用的 CNN"),
    Text("CNN of eight layers", "八层 CNN"),
    Text("MLP", "MLP"),
    Text("recurrent net", "循环网络"),
)
WHERE = Text(
    "{cpu}, {isa}, torch {torch}, {date}; {copies} copies, one thread; least and most over the methods.",
    "{cpu}，{isa}，torch {torch}，{date}；{copies} 个副本，一个线程；各方法中的最小值与最大值。",
)


def on_digits(build: Builder, rows: bool = False) -> Task:
    """A task on digits, as images or row by row."""
    parts = data.digits((800, 200, 797), 0.2)
    train, validation, test = (data.rows(part) for part in parts) if rows else parts
    return Task(None, train, test, validation=validation, arms=build, name="digits")


TASKS: Mapping[str, tuple[Task, tuple[str, ...], tuple[int, ...]]] = {
    "CNN of the comparison": (replace(embedded.digits(), probe=None), METHODS, (2, 8, 32)),
    "CNN of eight layers": (on_digits(partial(convnet, channels=DEEP)), METHODS, (2, 16)),
    "MLP": (on_digits(partial(mlp, inputs=64, width=96, depth=4)), METHODS, (2, 8, 32)),
    "recurrent net": (on_digits(partial(recurrent, inputs=8, width=48, steps=8), rows=True), METHODS[:3], (4, 32)),
}


def seconds(task: Task, method: str, batch: int, copies: int, stack: int) -> float:
    """The time of training and evaluating `copies` runs, `stack` at once."""
    plan = Design((method,), (batch,), 2, 3, STEPS, stack=stack)
    trials = [Trial("tune", method, batch, rate, seed) for rate in RATES for seed in range(copies // 2)]
    start = time.perf_counter()
    runs = TRAINER.execute(task, plan, trials)
    taken = time.perf_counter() - start
    failed = [run.message for run in runs if run.state == "failed"]
    if failed:
        raise RuntimeError(failed[0])
    if any(len(run.losses) < STEPS for run in runs):
        raise RuntimeError("a run ended early, so that the times are not those of the same work")
    return taken


def products(task: Task, method: str, batch: int, copies: int) -> Iterator[list[Callable[[], object]]]:
    """For each product of a training step of all copies, the calls of torch that compute it.

    Weights of linear layers are stacked; convolutions have the copies as groups, in both formats of memory.
    """
    found: list[tuple[nn.Linear | nn.Conv2d, Tensor, Tensor]] = []
    model = task.build(method, 0)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(lambda layer, given, out: found.append((layer, given[0], out)))
    inputs, _ = task.train.take(task.train.first(batch))
    model(inputs)
    for layer, x, y in found:
        if isinstance(layer, nn.Linear):
            values = torch.randn(copies, x.numel() // x.shape[-1], x.shape[-1])
            upstream = torch.randn(copies, len(values[0]), y.shape[-1])
            weight = torch.randn(copies, *layer.weight.shape)
            yield [partial(torch.bmm, values, weight.transpose(1, 2))]
            yield [partial(torch.bmm, values.transpose(1, 2), upstream)]
            if x.requires_grad:
                yield [partial(torch.bmm, upstream, weight)]
        else:
            yield from _convolutions(layer, x, y, copies)


def _convolutions(layer: nn.Conv2d, x: Tensor, y: Tensor, copies: int) -> Iterator[list[Callable[[], object]]]:
    forward: list[Callable[[], object]] = []
    backward: list[Callable[[], object]] = []
    # `padding_mode` is another operation before the convolution.
    options: tuple[Any, ...] = (layer.stride, layer.padding, layer.dilation, False, (0, 0), copies)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        values, upstream, weight = (
            torch.randn(shape).to(memory_format=memory_format)
            for shape in (
                (x.shape[0], copies * x.shape[1], *x.shape[2:]),
                (y.shape[0], copies * y.shape[1], *y.shape[2:]),
                (copies * len(layer.weight), *layer.weight.shape[1:]),
            )
        )
        forward.append(partial(torch.ops.aten.convolution.default, values, weight, None, *options))
        mask = [x.requires_grad, True, False]
        backward.append(
            partial(torch.ops.aten.convolution_backward.default, upstream, values, weight, None, *options, mask)
        )
    yield forward
    yield backward


def bound(task: Task, method: str, batch: int, copies: int) -> float:
    """The time of the products of all steps of a run, which is a share of those of `copies` runs."""
    total = 0.0
    for calls in products(task, method, batch, copies):
        times: list[list[float]] = [[] for _ in calls]
        for _ in range(REPEATS):
            for call, taken in zip(calls, times, strict=True):
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
        total += min(median(taken) for taken in times)
    return total * STEPS / copies


def measured(task: Task, method: str, batch: int, copies: int, rounds: int) -> dict[str, float]:
    """The trials per minute of a cell."""
    # The first call tests whether the model can be stacked.
    seconds(task, method, batch, 2, copies)
    taken = [
        (
            seconds(task, method, batch, copies, copies) / copies,
            # Four of them are enough to measure their speed.
            seconds(task, method, batch, 4, 1) / 4,
            bound(task, method, batch, copies),
        )
        for _ in range(rounds)
    ]
    together, apart, least = (60 / median(each) for each in zip(*taken, strict=True))
    return {
        "at_once_per_minute": round(together, 1),
        "one_by_one_per_minute": round(apart, 1),
        "ratio": round(median(b / a for a, b, _ in taken), 2),
        "bound_per_minute": round(least, 1),
        "of_bound": round(median(c / a for a, _, c in taken), 3),
    }


def markdown(results: Mapping[str, Any], lang: str) -> str:
    """The results as a table of a page."""
    rows = []
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for cell in results["cells"]:
        groups.setdefault((cell["net"], cell["batch"]), []).append(cell)
    names = {str(name): name for name in NAMES}
    for (net, batch), cells in groups.items():
        ratios = [cell["ratio"] for cell in cells]
        shares = [100 * cell["of_bound"] for cell in cells]
        spans = f"{min(ratios):.1f}–{max(ratios):.1f}", f"{min(shares):.0f}–{max(shares):.0f} %"
        rows.append([names[net].to(lang), str(batch), *spans])
    where = WHERE.to(lang).format(**results["machine"], copies=results["copies"])
    return f"\n{tables.markdown([header.to(lang) for header in HEADER], rows)}\n\n{where}\n"


def write_pages(results: Mapping[str, Any]) -> None:
    """Write the table into the page on `compare` in each language."""
    for lang in LANGUAGES:
        page = ROOT / "docs" / lang / "compare/compare.md"
        page.write_text(filled(page.read_text(), markdown(results, lang), MARKS))


def main(
    rounds: Annotated[int, typer.Option(help="Measurements of each, in turns.")] = 2,
    copies: Annotated[int, typer.Option(help="Runs at once.")] = 32,
    match: Annotated[str, typer.Option(help="Only cells whose name contains this, as in 'MLP 8 batch_norm'.")] = "",
    save: Annotated[Path, typer.Option(help="Result file; that of the project is shown on pages.")] = FILE,
    resume: Annotated[bool, typer.Option(help="Keep the cells of the last results that are not measured now.")] = False,
) -> None:
    """Measure, print, and write the results and the pages that show them; one thread, as each worker has."""
    torch.set_num_threads(1)
    if match and not resume:
        saved.refuse_part(save, RESULTS)
    kept = json.loads(save.read_text())["cells"] if resume else []
    known = {(cell["net"], cell["batch"], cell["method"]): cell for cell in kept}
    table = Table("net", "batch", "method", "at once, a minute", "one by one", "ratio", "bound", "of the bound")
    cells = []
    for name, (task, methods, sizes) in TASKS.items():
        for batch in sizes:
            for method in methods:
                if match in f"{name} {batch} {method}":
                    numbers = measured(task, method, batch, copies, rounds)
                    cells.append({"net": name, "batch": batch, "method": method, "steps": STEPS, **numbers})
                    table.add_row(name, str(batch), method, *map(str, numbers.values()))
                elif (name, batch, method) in known:
                    cells.append(known[name, batch, method])
    Console().print(table)
    results = {"machine": machine(), "copies": copies, "cells": cells}
    saved.store(save, results)
    if save.resolve() == FILE.resolve():
        write_pages(results)


if __name__ == "__main__":
    typer.run(main)
