"""Runs a study from its workloads to its comparison, also if it is interrupted."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from normkit.errors import StateError
from normkit.study.claims.experiment import Experiment
from normkit.study.comparison import Comparison, conclude
from normkit.study.execution import machine
from normkit.study.execution.scheduler import Progress, run_stages
from normkit.study.execution.store import Store
from normkit.study.execution.workers import WorkerPool
from normkit.study.execution.workload import Workload
from normkit.study.resolving import Resolving

Report = Callable[[Comparison], Path]
"""Writes the page of a comparison, and returns its path."""
REWRITTEN = 60.0
"""Seconds between two pages while claims are measured."""


def run_study(
    workloads: Sequence[Workload],
    experiments: Sequence[Experiment],
    store: Store,
    pool: WorkerPool,
    *,
    progress: Progress,
    minutes: float | None = None,
    limit: float | None = None,
    command: str = "",
    checkpoints: Path | None = None,
    until_resolved: bool = False,
    report: Report | None = None,
    announce: Callable[[str], None] | None = None,
) -> Comparison:
    """Run the trials that are not in the store yet, and draw conclusions from all runs.

    An interrupt (Ctrl-C) ends the study early: the comparison is made from the stored runs, with `complete` False;
    if there are none, the interrupt is passed on.

    Args:
        workloads: the workloads, with that of the comparison first.
        experiments: the experiments on claims, which use the runs of the workloads.
        store: the store of finished runs.
        pool: the workers, with the payload of these workloads.
        progress: called with (runs finished, runs in all, the name of the stage).
        minutes: the time after which no further run starts.
        limit: seconds a run may take.
        command: the command that repeats the study, for the report.
        checkpoints: folder for the best run of each method; None for none.
        until_resolved: whether seeds are added to the comparison until it is resolved, or the time is over.
        report: writes a page when a third of the seeds are measured, if that takes a while, when the comparison is
            finished, and every minute while claims are measured. The last page is written by the caller, from the
            returned comparison.
        announce: called with a message when one of the first two pages is written.

    Raises:
        StateError: the store cannot be used, or no process can be started.
    """
    resolving = Resolving(workloads[0], store, until_resolved)
    conclusion = _Conclusion(workloads, experiments, pool, command, resolving)
    pages = _Pages(conclusion, progress, report, announce)

    def compared() -> None:
        # From now on the results are known, however the study ends.
        resolving.record()
        if experiments:
            pages.compared()

    try:
        with pool, _interruptible(pages.notify) as notify:
            complete = run_stages(
                workloads,
                store,
                pool,
                notify,
                minutes,
                limit,
                checkpoints,
                confirm=resolving.confirm,
                grow=resolving.grow,
                preliminary=pages.preliminary,
                compared=compared,
            )
    except KeyboardInterrupt:
        if not any(workload.runs for workload in workloads):
            raise
        # While seeds are added, the look before has all its runs.
        complete = resolving.done > 0
    except Exception as error:
        error.add_note(f"Finished runs are kept in {store.where}: the same call continues from them.")
        raise
    comparison = conclusion.of(experiments, complete=complete)
    if comparison.pairs and not resolving.done:
        # A report of some of the runs is a look too. If the store fails now, the report is still worth having.
        with suppress(StateError):
            resolving.record()
    return comparison


class _Conclusion:
    """Draws conclusions from the runs of the workloads at any time."""

    def __init__(
        self,
        workloads: Sequence[Workload],
        experiments: Sequence[Experiment],
        pool: WorkerPool,
        command: str,
        resolving: Resolving,
    ) -> None:
        self.workloads, self.experiments, self.pool, self.command = workloads, experiments, pool, command
        self.resolving = resolving
        self.start = time.perf_counter()

    def of(
        self, experiments: Sequence[Experiment], *, complete: bool, awaited: int = 0, preliminary: bool = False
    ) -> Comparison:
        """The comparison, with the evidence of these experiments."""
        return conclude(
            self.workloads[0],
            self.workloads[1:],
            experiments,
            looks=self.resolving.looks(),
            complete=complete,
            machine=machine.facts() | {"workers": self.pool.workers, "executor": self.pool.executor},
            command=self.command,
            seconds=time.perf_counter() - self.start,
            awaited=awaited,
            preliminary=preliminary,
        )

    def preliminary(self) -> Comparison:
        """The comparison from a third of the seeds, without claims."""
        return self.of((), complete=False, awaited=len(self.experiments), preliminary=True)

    def so_far(self) -> Comparison:
        """The comparison while claims are measured, with the experiments whose runs are all finished."""
        # The first workload is finished, even if seeds are being added to it.
        finished = {workload.name for i, workload in enumerate(self.workloads) if i == 0 or workload.finished}
        measured = [each for each in self.experiments if finished.issuperset(each.workloads)]
        return self.of(measured, complete=False, awaited=len(self.experiments) - len(measured))


class _Pages:
    """Writes pages during a study; a page that cannot be written is left to the end, where it is an error."""

    def __init__(
        self,
        conclusion: _Conclusion,
        progress: Progress,
        report: Report | None,
        announce: Callable[[str], None] | None,
    ) -> None:
        self.conclusion, self.progress, self.report, self.announce = conclusion, progress, report, announce
        self.written: float | None = None

    def preliminary(self) -> None:
        """Write a preliminary page."""
        path = self._write(self.conclusion.preliminary)
        self._announce("A third of the seeds are measured, for a preliminary report", path)

    def compared(self) -> None:
        """Write the page of the comparison, which is written again from now on."""
        path = self._write(self.conclusion.so_far)
        self.written = time.monotonic()
        self._announce("The comparison is finished, claims are still being measured. Report", path)

    def notify(self, done: int, total: int, what: str) -> None:
        """Pass the progress on, and write a page if the last one is a minute old."""
        self.progress(done, total, what)
        if self.written is not None and time.monotonic() - self.written > REWRITTEN:
            self._write(self.conclusion.so_far)
            self.written = time.monotonic()

    def _write(self, conclusion: Callable[[], Comparison]) -> Path | None:
        path = None
        with suppress(StateError):
            path = self.report and self.report(conclusion())
        return path

    def _announce(self, text: str, path: Path | None) -> None:
        if path is not None and self.announce is not None:
            self.announce(f"{text}: {path}")


@contextmanager
def _interruptible(progress: Progress) -> Iterator[Progress]:
    """A progress function that interrupts the study if a KeyboardInterrupt was dropped.

    It is raised at whatever line the main thread executes. Python drops it in a destructor, and other packages may drop
    it too; then nothing else would end the study.
    """
    asked = threading.Event()

    def notify(done: int, total: int, what: str) -> None:
        progress(done, total, what)
        if asked.is_set():
            raise KeyboardInterrupt

    def interrupt(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.default_int_handler(number, frame)

    # A handler set by the user is kept, and only the main thread may set one.
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield progress
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield notify
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
