"""Trials per minute of `compare`, many copies at once compared with one by one: ``python -m benchmarks.trials``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.speed.measure import RESULTS, machine
from normkit.study.claims.workloads import DEEP
from normkit.study.suite import data
from normkit.study.suite.networks import Builder, convnet, mlp
from normkit.study.suite.sequences import recurrent
from normkit.study.task import Task, embedded
from normkit.study.training.design import Design
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Trial

METHODS = ("none", "batch_norm", "group_norm", "weight_norm")
STEPS = 200
TRAINER = Trainer()


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
    trials = [Trial("tune", method, batch, rate, seed) for rate in (0.01, 0.1) for seed in range(copies // 2)]
    start = time.perf_counter()
    runs = TRAINER.execute(task, plan, trials)
    taken = time.perf_counter() - start
    failed = [run.message for run in runs if run.state == "failed"]
    if failed:
        raise RuntimeError(failed[0])
    return taken


def main(
    rounds: Annotated[int, typer.Option(help="Measurements of each, in turns.")] = 2,
    copies: Annotated[int, typer.Option(help="Runs at once.")] = 32,
) -> None:
    """Measure, print, and write benchmarks/results/trials.json; one thread, as each worker has."""
    torch.set_num_threads(1)
    table = Table("net", "batch", "method", "at once, a minute", "one by one", "ratio")
    cells = []
    for name, (task, methods, sizes) in TASKS.items():
        for batch in sizes:
            for method in methods:
                # The first call tests whether the model can be stacked.
                seconds(task, method, batch, 2, copies)
                taken = [
                    (
                        seconds(task, method, batch, copies, copies) / copies,
                        # Four of them are enough to measure their speed.
                        seconds(task, method, batch, 4, 1) / 4,
                    )
                    for _ in range(rounds)
                ]
                together, apart = (60 / median(each) for each in zip(*taken, strict=True))
                ratio = median(b / a for a, b in taken)
                cells.append(
                    {
                        "net": name,
                        "batch": batch,
                        "method": method,
                        "steps": STEPS,
                        "at_once_per_minute": round(together, 1),
                        "one_by_one_per_minute": round(apart, 1),
                        "ratio": round(ratio, 2),
                    }
                )
                table.add_row(name, str(batch), method, f"{together:.0f}", f"{apart:.0f}", f"{ratio:.2f}")
    Console().print(table)
    path = RESULTS / "trials.json"
    path.write_text(json.dumps({"machine": machine(), "copies": copies, "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
