"""Carries benches out: tune, measure, time; each result is stored before it is counted.

A bench is a task and the design by which it is trained. The work of several goes to the same processes, stage by stage,
so that no core waits for the end of one before the next begins.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from normkit.study import verdict
from normkit.study.crew import Crew, Lost, ranks
from normkit.study.design import Design
from normkit.study.run import Job, Run
from normkit.study.store import Store, Times
from normkit.study.task import Task
from normkit.study.train import Timing, execute, time_steps
from normkit.study.verdict import Table

Progress = Callable[[int, int, str], None]
Held = tuple[tuple[Task, Design], ...]
Stack = tuple[int, tuple[Job, ...]]
"""The number of a bench, and jobs of one of its methods at one batch size."""


@dataclass
class Bench:
    """A task, how it is trained, and what has come of it so far."""

    name: str
    task: Task
    design: Design
    timed: bool = False
    runs: dict[Job, Run] = field(default_factory=dict)
    times: dict[int, Times] = field(default_factory=dict)

    @property
    def table(self) -> Table:
        """The runs by method and batch size."""
        return verdict.cells(self.design, self.runs, self.times)

    def screening(self) -> Iterator[Job]:
        """All rates on the tuning seeds."""
        for method, batch_size in self._cells():
            for seed in self.design.tuning_seeds:
                for rate in self.design.rates:
                    yield Job("tune", method, batch_size, rate, seed)

    def growing(self) -> Iterator[Job]:
        """Further rates where the best one lies at an end of the range."""
        table = self.table
        for method, batch_size in self._cells():
            for rate in self.design.rates_beyond(table[method, batch_size].rate or 0.0):
                for seed in self.design.tuning_seeds:
                    yield Job("tune", method, batch_size, rate, seed)

    def trying_options(self) -> Iterator[Job]:
        """What the task opens to the search beside the rate, at the best rate."""
        table = self.table
        for method, batch_size in self._cells() if self.design.options else ():
            rate = table[method, batch_size].rate
            for options in self.design.options if rate is not None else ():
                for seed in self.design.tuning_seeds:
                    yield Job("tune", method, batch_size, rate or 0.0, seed, options)

    def measuring(self) -> Iterator[Job]:
        """The chosen rate and options on every evaluation seed."""
        table = self.table
        for method, batch_size in self._cells():
            setting = table[method, batch_size].setting
            for seed in self.design.evaluation_seeds if setting else ():
                assert setting is not None
                yield Job("measure", method, batch_size, setting[0], seed, setting[1])

    def able(self, batch_size: int) -> tuple[str, ...]:
        """The methods that did not fail in every run; there is nothing to time of the others."""
        table = self.table
        return tuple(m for m in self.design.methods if table[m, batch_size].rate is not None)

    def _cells(self) -> Iterator[tuple[str, int]]:
        # Large batches first, so that no process is left alone with a long run at the end.
        for batch_size in reversed(self.design.batch_sizes):
            for method in self.design.methods:
                yield method, batch_size


STAGES: Mapping[str, Callable[[Bench], Iterator[Job]]] = {
    "trying learning rates": Bench.screening,
    "trying further rates": Bench.growing,
    "trying options": Bench.trying_options,
    "measuring": Bench.measuring,
}


def conduct(
    benches: Sequence[Bench],
    store: Store,
    crew: Crew,
    progress: Progress,
    minutes: float | None = None,
    limit: float | None = None,
) -> bool:
    """Do the runs of the benches that are not in the store yet, and put all runs into the benches.

    Args:
        benches: in the order in which the crew holds their tasks and designs.
        store: where finished runs are.
        crew: who works.
        progress: called with (runs finished, runs in all, what is running).
        minutes: after which no further run begins.
        limit: seconds a run may take.

    Returns:
        Whether everything was done.
    """
    end = math.inf if minutes is None else time.perf_counter() + 60 * minutes
    store.begin([(bench.task, bench.design) for bench in benches])
    for bench in benches:
        bench.runs |= store.runs(bench.task, bench.design)
    timings = [(i, size) for i, bench in enumerate(benches) if bench.timed for size in bench.design.batch_sizes]
    total, done = sum(bench.design.runs for bench in benches) + len(timings), 0
    for what, jobs_of in STAGES.items():
        asked = [(i, job) for i, bench in enumerate(benches) for job in jobs_of(bench)]
        left = [(i, job) for i, job in asked if _is_open(benches[i], job)]
        done += len(asked) - len(left)
        progress(done, total, what)
        stacks = _stacks(benches, left)
        # A stack may take as long as its runs one after the other.
        patience = limit and limit * max((len(jobs) for _, jobs in stacks), default=1)
        # What another process has done meanwhile is never yielded, and counted at the end of the stage.
        there = done + len(left)
        for (number, jobs), result in crew.work(train_stack, _still(benches, store, stacks), patience):
            bench = benches[number]
            for run in _runs(jobs, result):
                store.add(bench.task, bench.design, run)
                bench.runs[run.job] = run
            done += len(jobs)
            progress(done, max(done, total), what)
            if time.perf_counter() > end:
                return False
        done = there
    for number, batch_size in timings if ranks.rank() == 0 else ():
        # One after the other: two timings at once would disturb each other.
        bench = benches[number]
        timing = Timing(batch_size, bench.able(batch_size))
        known = store.times(bench.task, bench.design, timing)
        if known is None:
            patience = limit and limit * len(bench.design.methods)
            ((_, taken),) = crew.work(time_bench, [(number, timing)], patience)
            if isinstance(taken, Lost):
                warnings.warn(
                    f"the step times at {batch_size} images per step are missing from the report, because their "
                    f"measurement was lost ({taken.reason}): the same call tries again",
                    RuntimeWarning,
                    stacklevel=2,
                )
                continue
            known = taken
            store.add_times(bench.task, bench.design, timing, known)
        bench.times[batch_size] = known
        done += 1
        progress(done, max(done, total), "timing")
    return True


def _still(benches: Sequence[Bench], store: Store, stacks: list[Stack]) -> Iterator[Stack]:
    """The stacks one by one, each when a worker is free, without what another process has done meanwhile."""
    while stacks:
        pairs = [(benches[number].task, benches[number].design, jobs) for number, jobs in stacks]
        number, jobs = stacks.pop(store.take(pairs))
        bench = benches[number]
        found = [store.find(bench.task, bench.design, job) for job in jobs]
        bench.runs |= {run.job: run for run in found if run is not None}
        left = tuple(job for job, run in zip(jobs, found, strict=True) if run is None)
        if left:
            yield number, left


def _runs(jobs: Sequence[Job], result: list[Run] | Lost) -> list[Run]:
    """The runs of a stack; if it was lost, all of them have failed."""
    if isinstance(result, Lost):
        return [Run(job, "failed", result.reason, trace=result.trace) for job in jobs]
    return result


def train_stack(held: Held, stack: Stack) -> list[Run]:
    """What a worker does with a stack."""
    number, jobs = stack
    return execute(*held[number], jobs)


def time_bench(held: Held, item: tuple[int, Timing]) -> Times:
    """What a worker does with a timing."""
    number, timing = item
    return time_steps(*held[number], timing)


def _is_open(bench: Bench, job: Job) -> bool:
    """Whether a job has no result yet; one that raised last time gets another chance."""
    return job not in bench.runs or bench.runs[job].state == "failed"


def _stacks(benches: Sequence[Bench], jobs: Sequence[tuple[int, Job]]) -> list[Stack]:
    """Jobs of one bench, method and batch size together, equal rates side by side, the longest work first."""
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for number, job in jobs:
        groups.setdefault((number, job.kind, job.method, job.batch_size), []).append(job)
    stacks: list[Stack] = []
    for (number, *_), group in groups.items():
        size = benches[number].design.stack
        group.sort(key=lambda job: (job.rate, repr(job.options), job.seed))
        stacks += [(number, tuple(group[i : i + size])) for i in range(0, len(group), size)]

    def work(stack: Stack) -> int:
        number, jobs = stack
        return benches[number].design.steps * jobs[0].batch_size * len(jobs)

    return sorted(stacks, key=work, reverse=True)
