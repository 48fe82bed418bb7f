"""Runs the trials of workloads in stages: tuning, results, step times. Each run is stored before it is counted.

The comparison comes first. All other workloads share the workers, so that every core is busy until a stage ends.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from normkit.study.execution.batches import Batches
from normkit.study.execution.checkpoints import keep_best
from normkit.study.execution.payload import time_workload, train_batch
from normkit.study.execution.store import Store
from normkit.study.execution.workers import Failure, WorkerPool, ranks
from normkit.study.execution.workload import REPEATED, STAGES, Workload
from normkit.study.training.cost import Timing
from normkit.study.training.trial import Trial

Ask = Callable[[Workload], Iterable[Trial]]
"""The trials that a workload needs now."""
Progress = Callable[[int, int, str], None]
"""Called with (runs finished, runs in all, the name of the stage)."""


LONG = 20.0
"""Seconds of tuning after which a study is long enough for a page in between."""


class _Counter:
    """Counts each finished run once, and reports their number with that of all runs.

    Args:
        expected: of each workload the number of runs, its timings included. It is corrected by what a stage asks for.
        progress: called with every report.
    """

    def __init__(self, expected: Sequence[int], progress: Progress) -> None:
        self.expected, self.progress = list(expected), progress
        self.counted: list[set[object]] = [set() for _ in expected]
        self.what = ""

    def count(self, items: Iterable[tuple[int, object]]) -> None:
        """Count finished trials and timings, each with the number of its workload."""
        for number, item in items:
            self.counted[number].add(item)

    def expect(self, left: Iterable[tuple[int, object]]) -> None:
        """Expect these in any case: how many runs there will be is known only in part before the first one."""
        waiting = Counter(number for number, item in left if item not in self.counted[number])
        for number, count in waiting.items():
            self.expected[number] = max(self.expected[number], len(self.counted[number]) + count)

    def end(self, part: Iterable[int]) -> None:
        """Expect no further runs of some workloads."""
        for number in part:
            self.expected[number] = len(self.counted[number])
        self.report(self.what)

    def report(self, what: str) -> None:
        self.what = what
        done = [len(found) for found in self.counted]
        self.progress(sum(done), sum(map(max, done, self.expected)), what)


def run_stages(
    workloads: Sequence[Workload],
    store: Store,
    pool: WorkerPool,
    progress: Progress,
    minutes: float | None = None,
    limit: float | None = None,
    checkpoints: Path | None = None,
    confirm: Ask | None = None,
    grow: Callable[[], bool] | None = None,
    preliminary: Callable[[], None] | None = None,
    compared: Callable[[], None] | None = None,
) -> bool:
    """Run the trials of the workloads that are not in the store yet, and add all runs to the workloads.

    The first workload, the comparison, is finished before the others begin, so that it can be read early.

    Args:
        workloads: the workloads, in the order of the pool's `Payload`.
        store: the store of finished runs.
        pool: the workers.
        progress: called after each batch of trials.
        minutes: the time after which no further run starts.
        limit: seconds a batch of trials may take before it is divided, and a run alone before it fails.
        checkpoints: folder for the best run of each method of the first workload; None for none.
        confirm: the trials that the verdicts need in addition; asked again until it names no new one.
        grow: called when everything is done; it may add seeds to the workloads, and returns whether it did.
        preliminary: called when a third of the seeds of the first workload are measured, if tuning took a while.
        compared: called when the first workload, which is trained before the others, is finished.

    Returns:
        Whether everything was done. If only the seeds that were added last are missing, everything was done.
    """
    start = time.perf_counter()
    end = math.inf if minutes is None else start + 60 * minutes
    store.begin([(workload.task, workload.design) for workload in workloads])
    for workload in workloads:
        workload.runs |= store.runs(workload.task, workload.design)
    timed = [(i, workload) for i, workload in enumerate(workloads) if workload.timed]
    timings = [(i, size) for i, workload in timed for size in workload.design.batch_sizes]
    times = Counter(number for number, _ in timings)
    counter = _Counter([workload.design.runs + times[i] for i, workload in enumerate(workloads)], progress)

    def run(stages: Mapping[str, Ask], part: range) -> bool:
        return all(
            _run_stage(what, ask, part, workloads, store, pool, counter, end, limit) for what, ask in stages.items()
        )

    def settled(what: str, ask: Ask, part: range) -> bool:
        """Run a stage until it asks for nothing that is new."""
        asked: set[tuple[int, Trial]] = set()
        while new := {(i, t) for i in part for t in ask(workloads[i]) if workloads[i].is_open(t)} - asked:
            asked |= new
            if not run({what: ask}, part):
                return False
        return True

    def confirmed() -> bool:
        return confirm is None or settled("confirming", confirm, range(1))

    def first_measured() -> bool:
        """Run a third of the seeds of the first workload, and report it, if the study is long enough for that."""
        new = any(workloads[0].is_open(trial) for trial in workloads[0].first_results())
        if preliminary is None or not new or time.perf_counter() - start < LONG:
            return True
        if not run({"measuring a third of the seeds": Workload.first_results}, range(1)):
            return False
        preliminary()
        return True

    for part in (range(1), range(1, len(workloads))):
        for what, ask in STAGES.items() if part else ():
            if 0 in part and ask is Workload.results and not first_measured():
                return False
            if not (settled(what, ask, part) if what in REPEATED else run({what: ask}, part)):
                return False
        if 0 in part and not confirmed():
            return False
        for number, batch_size in timings if ranks.rank() == 0 else ():
            if number in part:
                _time(workloads[number], number, batch_size, store, pool, counter, limit)
        counter.end(part)
        if 0 in part and compared is not None:
            compared()
    measuring = {"measuring": STAGES["measuring"]}
    while grow and grow() and time.perf_counter() < end:
        if not run(measuring, range(1)) or not confirmed():
            break
    counter.end(range(len(workloads)))
    if checkpoints is not None and ranks.rank() == 0:
        counter.report("keeping the best runs")
        keep_best(workloads[0], 0, pool, checkpoints, limit)
    return True


def _run_stage(
    what: str,
    ask: Ask,
    part: range,
    workloads: Sequence[Workload],
    store: Store,
    pool: WorkerPool,
    counter: _Counter,
    end: float,
    limit: float | None,
) -> bool:
    """Run the trials of one stage of a part of the workloads; returns whether there was time for all of them."""
    # A trial may be asked for twice, for example by two looks.
    asked = dict.fromkeys((i, trial) for i in part for trial in ask(workloads[i]))
    name = what if 0 in part else f"claims: {what}"
    left = [(i, trial) for i, trial in asked if workloads[i].is_open(trial)]
    counter.count((i, trial) for i, trial in asked if not workloads[i].is_open(trial))
    counter.expect(left)
    counter.report(name)
    batches = Batches(workloads, store, left, pool.workers)
    for batch, result in pool.work(train_batch, batches, limit):
        workload, runs = workloads[batch[0]], batches.runs(batch, result)
        for run in runs:
            store.add(workload.task, workload.design, run)
            workload.runs[run.trial] = run
        counter.count((batch[0], run.trial) for run in runs)
        counter.report(name)
        if time.perf_counter() > end:
            return False
    # Runs of other processes are counted together.
    counter.count(left)
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
    if not timing.methods:
        return
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
    counter.count([(number, timing)])
    counter.report("timing")
