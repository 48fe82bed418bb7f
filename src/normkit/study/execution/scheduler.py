"""Runs the trials of workloads in stages: tuning, results, step times. Each run is stored before it is counted.

All workloads share the same workers, so that every core is busy until a stage ends.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normkit.study.execution.checkpoints import keep_best
from normkit.study.execution.store import Store
from normkit.study.execution.workers import Failure, WorkerPool, ranks
from normkit.study.execution.workload import STAGES, Times, Workload
from normkit.study.task import Task
from normkit.study.training.cost import Timing, time_steps
from normkit.study.training.design import Design
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Run, Trial

Progress = Callable[[int, int, str], None]
"""Called with (runs finished, runs in all, the name of the stage)."""
Batch = tuple[int, tuple[Trial, ...]]
"""A batch of trials: the number of a workload, and trials of one of its methods at one batch size."""


@dataclass(frozen=True)
class Payload:
    """The data of every worker: task and design of each workload, and a trainer."""

    studies: tuple[tuple[Task, Design], ...]
    trainer: Trainer = field(default_factory=Trainer)

    @classmethod
    def of(cls, workloads: Sequence[Workload]) -> Payload:
        """The payload for some workloads, in their order."""
        return cls(tuple((workload.task, workload.design) for workload in workloads))


def train_batch(payload: Payload, batch: Batch) -> list[Run]:
    """In a worker: the runs of a batch of trials."""
    number, trials = batch
    return payload.trainer.execute(*payload.studies[number], trials)


def time_workload(payload: Payload, item: tuple[int, Timing]) -> Times:
    """In a worker: the step times of a workload."""
    number, timing = item
    return time_steps(*payload.studies[number], timing)


class _Counter:
    """Counts the finished runs, and reports them with the number of all runs."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.total, self.done, self.progress = total, 0, progress

    def report(self, what: str) -> None:
        self.progress(self.done, max(self.done, self.total), what)


def run_stages(
    workloads: Sequence[Workload],
    store: Store,
    pool: WorkerPool,
    progress: Progress,
    minutes: float | None = None,
    limit: float | None = None,
    checkpoints: Path | None = None,
) -> bool:
    """Run the trials of the workloads that are not in the store yet, and add all runs to the workloads.

    Args:
        workloads: the workloads, in the order of the pool's `Payload`.
        store: the store of finished runs.
        pool: the workers.
        progress: called after each batch of trials.
        minutes: the time after which no further run starts.
        limit: seconds a run may take.
        checkpoints: folder for the best run of each method of the first workload; None for none.

    Returns:
        Whether everything was done.
    """
    end = math.inf if minutes is None else time.perf_counter() + 60 * minutes
    store.begin([(workload.task, workload.design) for workload in workloads])
    for workload in workloads:
        workload.runs |= store.runs(workload.task, workload.design)
    timed = [(i, workload) for i, workload in enumerate(workloads) if workload.timed]
    timings = [(i, size) for i, workload in timed for size in workload.design.batch_sizes]
    counter = _Counter(sum(workload.design.runs for workload in workloads) + len(timings), progress)
    for what in STAGES:
        if not _run_stage(what, workloads, store, pool, counter, end, limit):
            return False
    for number, batch_size in timings if ranks.rank() == 0 else ():
        _time(workloads[number], number, batch_size, store, pool, counter, limit)
    if checkpoints is not None and ranks.rank() == 0:
        counter.report("keeping the best runs")
        keep_best(workloads[0], 0, pool, checkpoints, limit)
    return True


def _run_stage(
    what: str,
    workloads: Sequence[Workload],
    store: Store,
    pool: WorkerPool,
    counter: _Counter,
    end: float,
    limit: float | None,
) -> bool:
    """Run the trials of one stage; returns whether there was time for all of them."""
    asked = [(i, trial) for i, workload in enumerate(workloads) for trial in STAGES[what](workload)]
    left = [(i, trial) for i, trial in asked if workloads[i].is_open(trial)]
    counter.done += len(asked) - len(left)
    counter.report(what)
    batches = _batches(workloads, left)
    # A batch may take as long as its runs would take one after the other.
    patience = limit and limit * max((len(trials) for _, trials in batches), default=1)
    # Runs of other processes are counted together at the end of the stage.
    after = counter.done + len(left)
    for (number, trials), result in pool.work(train_batch, _remaining(workloads, store, batches), patience):
        workload = workloads[number]
        for run in _runs(trials, result):
            store.add(workload.task, workload.design, run)
            workload.runs[run.trial] = run
        counter.done += len(trials)
        counter.report(what)
        if time.perf_counter() > end:
            return False
    counter.done = after
    return True


def _time(
    workload: Workload,
    number: int,
    batch_size: int,
    store: Store,
    pool: WorkerPool,
    counter: _Counter,
    limit: float | None,
) -> None:
    """Measure the step times of a workload at a batch size; one at a time, so that they do not disturb each other."""
    timing = Timing(batch_size, workload.trained(batch_size))
    known = store.times(workload.task, workload.design, timing)
    if known is None:
        patience = limit and limit * len(workload.design.methods)
        ((_, result),) = pool.work(time_workload, [(number, timing)], patience)
        if isinstance(result, Failure):
            warnings.warn(
                f"the step times at {batch_size} images per step are missing from the report, because their "
                f"measurement was lost ({result.reason}): the same call tries again",
                RuntimeWarning,
                stacklevel=3,
            )
            return
        known = result
        store.add_times(workload.task, workload.design, timing, known)
    workload.times[batch_size] = known
    counter.done += 1
    counter.report("timing")


def _remaining(workloads: Sequence[Workload], store: Store, batches: list[Batch]) -> Iterator[Batch]:
    """Yields a batch whenever a worker is free, without the trials that another process has run meanwhile."""
    while batches:
        studies = [(workloads[number].task, workloads[number].design, trials) for number, trials in batches]
        number, trials = batches.pop(store.take(studies))
        workload = workloads[number]
        found = [store.find(workload.task, workload.design, trial) for trial in trials]
        workload.runs |= {run.trial: run for run in found if run is not None}
        left = tuple(trial for trial, run in zip(trials, found, strict=True) if run is None)
        if left:
            yield number, left


def _runs(trials: Sequence[Trial], result: list[Run] | Failure) -> list[Run]:
    """The runs of a batch; if the batch failed, all of them are failed runs."""
    if isinstance(result, Failure):
        return [Run(trial, "failed", result.reason, trace=result.trace) for trial in trials]
    return result


def _batches(workloads: Sequence[Workload], trials: Sequence[tuple[int, Trial]]) -> list[Batch]:
    """Batches of trials of one workload, method and batch size, sorted by rate inside a batch; longest batch first."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for number, trial in trials:
        groups.setdefault((number, trial.kind, trial.method, trial.batch_size), []).append(trial)
    batches: list[Batch] = []
    for (number, *_), group in groups.items():
        size = workloads[number].design.stack
        group.sort(key=lambda trial: (trial.rate, repr(trial.options), trial.seed))
        batches += [(number, tuple(group[i : i + size])) for i in range(0, len(group), size)]

    def work(batch: Batch) -> int:
        number, trials = batch
        return workloads[number].design.steps * trials[0].batch_size * len(trials)

    return sorted(batches, key=work, reverse=True)
