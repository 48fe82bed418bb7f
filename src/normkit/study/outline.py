"""What a study would do and how long it would take, before it does it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from normkit.study import words
from normkit.study.conduct import Bench
from normkit.study.crew.local import one_thread
from normkit.study.run import Job
from normkit.study.train import execute

SHORT, LONG = 3, 9
"""Steps of the two trainings from which the time of all steps follows."""


@dataclass(frozen=True)
class Row:
    """One bench: what it trains, and how long all of that takes one core; `done` runs are in the store."""

    bench: str
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
        rows: what is trained, bench by bench.
        workers: processes that share the work.
        seconds: estimated wall time of what is left. Rates beyond the range, tried where the best one lies at an end
            of it, come on top, and so does the start of the processes.
    """

    rows: tuple[Row, ...]
    workers: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        headings = ("bench", "methods", "batch sizes", "steps", "runs", "done", "core time")
        lines = [headings]
        for row in self.rows:
            sizes = ", ".join(map(str, row.batch_sizes))
            took = words.duration(row.seconds) if math.isfinite(row.seconds) else "?"
            counts = (str(row.steps), str(row.runs), str(row.done), took)
            lines.append((row.bench, str(len(row.methods)), sizes, *counts))
        widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
        shown = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        runs = sum(row.runs - row.done for row in self.rows)
        known = math.isfinite(self.seconds)
        about = f"about {words.duration(self.seconds)}" if known else "for how long cannot be told, as some fail,"
        last = f"{runs} runs are left: {about} with {self.workers} at a time."
        return "\n".join([*shown, "", last])


def outline(benches: Sequence[Bench], workers: int) -> Outline:
    """The plan of some benches, whose runs are those in the store; trains a few steps of each to know the time.

    Args:
        benches: what would be carried out.
        workers: processes that share the work.
    """
    with one_thread():  # as the workers train
        rows = tuple(_row(bench) for bench in benches)
    return Outline(rows, workers, sum(row.seconds for row in rows) / workers)


def _row(bench: Bench) -> Row:
    design = bench.design
    each = design.runs // (len(design.methods) * len(design.batch_sizes))
    done = sum(run.state != "failed" for run in bench.runs.values())
    share = max(0.0, 1 - done / design.runs) if design.runs else 0.0
    seconds = sum(len(design.methods) * each * _seconds(bench, size) for size in design.batch_sizes) if share else 0.0
    return Row(
        bench=bench.name,
        task=bench.task.name,
        methods=design.methods,
        batch_sizes=design.batch_sizes,
        steps=design.steps,
        runs=design.runs,
        done=done,
        seconds=share * seconds,
    )


def _seconds(bench: Bench, batch_size: int) -> float:
    """Of one run, trained in a stack; measured on the last method, which has a norm."""
    method = bench.design.methods[-1]
    wanted = (job for job in bench.screening() if (job.method, job.batch_size) == (method, batch_size))
    jobs = list(islice(wanted, bench.design.stack))
    _timed(bench, jobs, SHORT)
    first, second = _timed(bench, jobs, SHORT), _timed(bench, jobs, LONG)
    slope = max(0.0, second - first) / (LONG - SHORT)
    return (first + slope * (bench.design.steps - SHORT)) / len(jobs)


def _timed(bench: Bench, jobs: Sequence[Job], steps: int) -> float:
    start = time.perf_counter()
    runs = execute(bench.task, replace(bench.design, steps=steps), jobs)
    failed = next((run for run in runs if run.state == "failed"), None)
    return math.nan if failed else time.perf_counter() - start
