"""Carries a design out: tune, measure, time; each result is stored before it is counted."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from normkit.errors import ArgumentError
from normkit.study import machine, verdict
from normkit.study.comparison import Comparison, conclude
from normkit.study.crew import Crew, Lost, muster, ranks
from normkit.study.design import Design
from normkit.study.location import Location
from normkit.study.run import Job, Run, Timing, execute, time_steps
from normkit.study.store import Store, Times
from normkit.study.task import Task

Progress = Callable[[int, int, str], None]


def conduct(
    task: Task,
    design: Design,
    folder: Path,
    *,
    workers: int | None,
    progress: Progress,
    command: str = "",
    store: str | None = None,
    resume: bool = False,
    executor: str = "processes",
    address: str | None = None,
    limit: float | None = None,
) -> Comparison:
    """Do the runs of a design that are not in the store yet, and conclude from all of them.

    An interrupt (Ctrl-C) ends the study early: what is stored is concluded from, with `complete` False; with
    nothing stored the interrupt is passed on.

    Args:
        task: what to train.
        design: how, and how often.
        folder: holds the store, unless `store` names a database; made if need be.
        workers, executor, address: see `crew.muster`.
        progress: called with (runs finished, runs in all, what is running).
        command: for the report, what repeats the study.
        store: URL of a database.
        resume: demand that the study was begun before.
        limit: seconds a run may take.

    Raises:
        ArgumentError: no folder can be made there, or the executor or the URL is unknown.
        StateError: the store cannot be used, or no worker can be started.
    """
    start = time.perf_counter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            f"out must be a folder, or a place where one can be made, got {str(folder)!r} ({error.strerror}): "
            "name another"
        ) from error
    complete = True
    where = Location.of(store or folder / "study.sqlite3")
    ranks.check(executor, where.file is not None)
    crew = muster((task, design), workers, executor=executor, address=address)
    with Store(where, task, design, resume=resume) as kept:
        study = _Study(design, kept, progress, limit)
        try:
            with crew:
                study.train(crew, study.screening(), "trying learning rates")
                study.train(crew, study.finals(), "choosing learning rates")
                study.train(crew, study.measuring(), "measuring")
                if ranks.rank() == 0:
                    study.time(crew)
        except KeyboardInterrupt:
            if not study.runs:
                raise
            complete = False
        except Exception as error:
            error.add_note(f"Finished runs are kept in {where if store else folder}: the same call goes on from them.")
            raise
    return conclude(
        task,
        design,
        study.runs,
        study.times,
        complete=complete,
        machine=machine.facts() | {"workers": crew.workers, "executor": executor},
        command=command,
        seconds=time.perf_counter() - start,
    )


class _Study:
    """The runs of one design so far, and what is left to do."""

    def __init__(self, design: Design, store: Store, progress: Progress, limit: float | None) -> None:
        self.design, self.store, self.progress, self.limit = design, store, progress, limit
        self.runs = store.runs()
        self.times: dict[int, Times] = {}
        self.total = design.runs + len(design.batch_sizes)
        self.done = 0

    def screening(self) -> list[Job]:
        """All rates on the first tuning seed."""
        # Large batches first here and below, so that no process is left alone with a long run at the end.
        return [
            Job("tune", method, batch_size, rate, self.design.tuning_seeds[0])
            for batch_size in reversed(self.design.batch_sizes)
            for rate in self.design.rates
            for method in self.design.methods
        ]

    def finals(self) -> list[Job]:
        """The best rates on the other tuning seeds."""
        screened = {job: self.runs[job] for job in self.screening() if job in self.runs}
        table = verdict.cells(self.design, screened, {})
        return [
            Job("tune", method, batch_size, rate, seed)
            for batch_size in reversed(self.design.batch_sizes)
            for seed in self.design.tuning_seeds[1:]
            for method in self.design.methods
            for rate in verdict.ranking(table[method, batch_size].tuning)[: self.design.finalists]
        ]

    def measuring(self) -> list[Job]:
        """The chosen rate on every evaluation seed."""
        table = verdict.cells(self.design, self.runs, {})
        return [
            Job("measure", method, batch_size, rate, seed)
            for batch_size in reversed(self.design.batch_sizes)
            for seed in self.design.evaluation_seeds
            for method in self.design.methods
            if (rate := table[method, batch_size].rate) is not None
        ]

    def train(self, crew: Crew, jobs: Sequence[Job], what: str) -> None:
        """Run the jobs without a result; one that raised last time gets another chance."""
        left = [job for job in jobs if job not in self.runs or self.runs[job].state == "failed"]
        self._count(len(jobs) - len(left), what)
        for job, result in crew.work(_execute, self._still(left, what), self.limit):
            run = Run(job, "failed", result.reason, trace=result.trace) if isinstance(result, Lost) else result
            self.store.add(run)
            self.runs[run.job] = run
            self._count(1, what)

    def _still(self, jobs: list[Job], what: str) -> Iterator[Job]:
        """The jobs one by one, each when a worker is free; those that another process has done meanwhile are kept."""
        while jobs:
            job = self.store.take(jobs)
            jobs.remove(job)
            run = self.store.find(job)
            if run is None:
                yield job
            else:
                self.runs[job] = run
                self._count(1, what)

    def time(self, crew: Crew) -> None:
        """One batch size after the other: two timings at once would disturb each other."""
        for batch_size in self.design.batch_sizes:
            timing = Timing(batch_size, self._able(batch_size))
            known = self.store.times(timing)
            if known is None:
                # It takes every method's steps in turn, so it may take as long as that many runs.
                limit = self.limit and self.limit * len(self.design.methods)
                ((_, result),) = crew.work(_time_steps, [timing], limit)
                if isinstance(result, Lost):
                    warnings.warn(
                        f"the step times at {batch_size} images per step are missing from the report, because their "
                        f"measurement was lost ({result.reason}): the same call tries again",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                    continue
                known = result
                self.store.add_times(timing, known)
            self.times[batch_size] = known
            self._count(1, "timing")

    def _able(self, batch_size: int) -> tuple[str, ...]:
        """The methods that did not fail in every run; there is nothing to time of the others."""
        table = verdict.cells(self.design, self.runs, {})
        return tuple(m for m in self.design.methods if table[m, batch_size].rate is not None)

    def _count(self, finished: int, what: str) -> None:
        self.done += finished
        self.progress(self.done, self.total, what)


def _execute(held: tuple[Task, Design], job: Job) -> Run:
    """By its name in a worker; see `execute`."""
    return execute(*held, job)


def _time_steps(held: tuple[Task, Design], timing: Timing) -> Times:
    """By its name in a worker; see `time_steps`."""
    return time_steps(*held, timing)
