"""The plan of a study: what it would train, and an estimate of the time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from normkit.study.execution.workers.pool import one_thread
from normkit.study.execution.workload import Workload
from normkit.study.report.writing import formatting
from normkit.study.task import Task
from normkit.study.training.design import FIRST_PART
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Trial

STEPS = 4
"""The difference in steps between two short trainings, from which the time of a full one is estimated."""


@dataclass(frozen=True)
class Row:
    """One workload: what it trains, and the time on one core; `done` runs are already in the store."""

    workload: str
    task: str
    methods: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    steps: int
    runs: int
    done: int
    seconds: float


@dataclass(frozen=True)
class Outline:
    """The plan of a study.

    Attributes:
        rows: one for each workload.
        workers: number of processes that share the work.
        seconds: estimated wall time of the remaining runs. It excludes rates beyond the range, which are tried if the
            best rate is at an end of it, and the start of the processes.
    """

    rows: tuple[Row, ...]
    workers: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        headings = ("workload", "methods", "batch sizes", "steps", "runs", "done", "core time")
        lines = [headings]
        for row in self.rows:
            sizes = ", ".join(map(str, row.batch_sizes))
            took = formatting.duration(row.seconds) if math.isfinite(row.seconds) else "?"
            counts = (str(row.steps), str(row.runs), str(row.done), took)
            lines.append((row.workload, str(len(row.methods)), sizes, *counts))
        widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
        shown = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        runs = sum(row.runs - row.done for row in self.rows)
        known = math.isfinite(self.seconds)
        about = f"about {formatting.duration(self.seconds)}" if known else "for an unknown time, because some fail,"
        last = f"{runs} runs are left: {about} with {self.workers} at a time."
        return "\n".join([*shown, "", last])


def outline(workloads: Sequence[Workload], workers: int) -> Outline:
    """The plan of some workloads, whose `runs` are those in the store; trains a few steps of each to measure the time.

    Args:
        workloads: the workloads of the study.
        workers: number of processes that share the work.
    """
    clock = _Clock()
    with one_thread():  # as in the workers
        rows = tuple(_row(clock, workload) for workload in workloads)
    return Outline(rows, workers, sum(row.seconds for row in rows) / workers)


def _row(clock: _Clock, workload: Workload) -> Row:
    design = workload.design
    each = design.runs // (len(design.methods) * len(design.batch_sizes))
    done = sum(run.state != "failed" for run in workload.own_runs)
    # Which runs are needed besides those that were planned is known once these have ended.
    left = sum(map(workload.is_open, set(workload.asked())))
    runs = max(design.runs, done + left) if left else done
    share = max(0.0, 1 - done / runs) if runs else 0.0
    sizes = design.batch_sizes if share else ()
    if design.discards:
        each -= round(design.trials * (1 - FIRST_PART)) * design.tuning_runs
    seconds = sum(len(design.methods) * each * clock.seconds(workload, size) for size in sizes)
    return Row(
        workload=workload.name,
        task=workload.task.name,
        methods=design.methods,
        batch_sizes=design.batch_sizes,
        steps=design.steps,
        runs=runs,
        done=done,
        seconds=share * seconds,
    )


class _Clock:
    """Estimates the time of runs from a few steps; workloads that train the same network share a measurement."""

    def __init__(self) -> None:
        self.trainer = Trainer()
        self.known: dict[object, tuple[float, float]] = {}

    def seconds(self, workload: Workload, batch_size: int) -> float:
        """Time of one run in a batch of trials, measured on the last method, which has a norm."""
        method = workload.design.methods[-1]
        wanted = (trial for trial in workload.all_rates() if (trial.method, trial.batch_size) == (method, batch_size))
        trials = list(islice(wanted, workload.design.stack))
        key = (_network(workload.task), method, batch_size, len(trials))
        if key not in self.known:
            self.known[key] = self._measured(workload, trials)
        once, step = self.known[key]
        return once + step * workload.design.steps_at(batch_size)

    def _measured(self, workload: Workload, trials: Sequence[Trial]) -> tuple[float, float]:
        """Seconds of a run: those spent once, mostly on evaluation, and those of each step."""
        task, design = workload.task, replace(workload.design, steps=1, steps_by_size=())
        # Evaluation takes a time for each copy, so two are enough. The first call takes longer than any other.
        # On a CPU, time of the processor: what else runs on this machine now will not run all the time.
        clock = time.process_time if design.device == "cpu" else time.perf_counter
        for _ in range(2):
            start = clock()
            runs = self.trainer.execute(task, design, trials[:2])
            once = (clock() - start) / len(runs)
        if any(run.state == "failed" for run in runs):
            return math.nan, math.nan
        need = self.trainer.needs[id(task), trials[0].method, trials[0].batch_size]
        trials = trials[: need.sizes(len(trials), self.trainer.budget[design.device]).copies]
        stacked = len(trials) > 1 and self.trainer.stacks(task, trials[0].method, trials[0].batch_size)
        trials = trials if stacked else trials[:1]
        took = []
        for steps in (1, 1, 1 + STEPS):
            start = clock()
            self.trainer.fit(task, replace(design, steps=steps), trials, stacked)
            took.append(clock() - start)
        return once, max(0.0, took[-1] - took[-2]) / (STEPS * len(trials))


def _network(task: Task) -> object:
    """Equal for tasks that make the same networks for the same number of samples; the optimizer takes little time."""
    make = task.arms
    if isinstance(make, partial):
        return make.func, make.args, frozenset(make.keywords.items()), len(task.validation)
    return id(task)
