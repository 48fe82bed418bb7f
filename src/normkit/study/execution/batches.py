"""The batches of trials that wait for a worker: small at first, limited in time, and divided if their worker is lost.

A batch is stored when it ends, so what a kill can lose is bounded by the time that a batch takes. A batch whose process
died, or that took too long, is divided and tried again, until the trial that caused it is alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from normkit.study.execution.store import Store
from normkit.study.execution.workers import Failure
from normkit.study.execution.workload import Workload
from normkit.study.training.trial import Run, Trial

Batch = tuple[int, tuple[Trial, ...]]
"""A batch of trials: the number of a workload, and trials of one of its methods at one batch size."""
FIRST = 2
"""Trials of the first batch of each worker, while nothing is known about their time: its runs are stored soon."""
SECONDS = 30.0
"""The time that a batch should take at most, from the time of earlier runs."""


class Batches:
    """An iterator over batches, the longest first. It may go on after its end, if a batch was divided meanwhile.

    Args:
        workloads: the workloads; their runs tell how long a run takes.
        store: where other processes may have stored runs meanwhile, and mark the trials that they have taken.
        trials: the trials of one stage, each with the number of its workload.
        workers: number of workers.
    """

    def __init__(
        self, workloads: Sequence[Workload], store: Store, trials: Sequence[tuple[int, Trial]], workers: int
    ) -> None:
        self.workloads, self.store = workloads, store
        self._waiting = _groups(workloads, trials)
        self._first = workers
        self._largest: dict[tuple[int, str, int], int] = {}
        self._seconds: dict[int, dict[int, float]] = {}
        for number, workload in enumerate(workloads):
            for run in workload.runs.values():
                self._note(number, run)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        """The next batch that no other process has taken, without the trials that others have run meanwhile."""
        while self._waiting:
            sized = [(number, trials, self._size(number, trials)) for number, trials in self._waiting]
            studies = [(self.workloads[n].task, self.workloads[n].design, trials, size) for n, trials, size in sized]
            at, trials = self.store.take(studies)
            number, group = self._waiting[at]
            rest = tuple(trial for trial in group if trial not in trials)
            self._waiting[at : at + 1] = [(number, rest)] if rest else []
            self._first -= 1
            workload = self.workloads[number]
            found = [self.store.find(workload.task, workload.design, trial) for trial in trials]
            workload.runs |= {run.trial: run for run in found if run is not None}
            left = tuple(trial for trial, run in zip(trials, found, strict=True) if run is None)
            if left:
                return number, left
        raise StopIteration

    def runs(self, batch: Batch, result: list[Run] | Failure) -> list[Run]:
        """The runs of a batch that has ended; none if its worker was lost and it is divided, to be tried again."""
        number, trials = batch
        if not isinstance(result, Failure):
            for run in result:
                self._note(number, run)
            return result
        if result.lost and len(trials) > 1:
            middle = len(trials) // 2
            self._waiting[:0] = [(number, trials[:middle]), (number, trials[middle:])]
            # The cause may be the number of trials, so the next batches are no larger either.
            self._largest[_key(number, trials)] = len(trials) - middle
            return []
        # A single run was the cause, not the number of trials.
        self._largest.pop(_key(number, trials), None)
        return [Run(trial, "failed", result.reason, trace=result.trace) for trial in trials]

    def _size(self, number: int, trials: Sequence[Trial]) -> int:
        stack = self._largest.get(_key(number, trials), self.workloads[number].design.stack)
        known = self._seconds.get(number, {})
        if not known:
            return min(stack, FIRST) if self._first > 0 else stack
        seconds = trials[0].part * known.get(trials[0].batch_size, max(known.values()))
        return max(1, min(stack, int(SECONDS / seconds)))

    def _note(self, number: int, run: Run) -> None:
        """Remember how long the last run took, or a whole one would have."""
        if run.seconds > 0 and run.state != "failed":
            self._seconds.setdefault(number, {})[run.trial.batch_size] = run.seconds / run.trial.part


def _groups(workloads: Sequence[Workload], trials: Sequence[tuple[int, Trial]]) -> list[Batch]:
    """Trials of one workload, method and batch size, sorted by rate; the longest first. One that failed is alone."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for number, trial in trials:
        alone = trial if trial in workloads[number].runs else None
        groups.setdefault((number, trial.kind, trial.method, trial.batch_size, trial.part, alone), []).append(trial)
    batches: list[Batch] = []
    for (number, *_), group in groups.items():
        size = workloads[number].design.stack
        group.sort(key=lambda trial: (trial.rate, repr(trial.options), trial.seed))
        batches += [(number, tuple(group[i : i + size])) for i in range(0, len(group), size)]

    def work(batch: Batch) -> int:
        number, trials = batch
        return int(
            workloads[number].design.steps_at(trials[0].batch_size)
            * trials[0].part
            * trials[0].batch_size
            * len(trials)
        )

    return sorted(batches, key=work, reverse=True)


def _key(number: int, trials: Sequence[Trial]) -> tuple[int, str, int]:
    return number, trials[0].method, trials[0].batch_size
