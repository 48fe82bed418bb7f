"""Runs a study from its workloads to its comparison, also if it is interrupted."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from normkit.study.claims.experiment import Experiment
from normkit.study.comparison import Comparison, conclude
from normkit.study.execution import machine
from normkit.study.execution.scheduler import Progress, run_stages
from normkit.study.execution.store import Store
from normkit.study.execution.workers import WorkerPool
from normkit.study.execution.workload import Workload


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

    Raises:
        StateError: the store cannot be used, or no process can be started.
    """
    start = time.perf_counter()
    try:
        with pool, _interruptible(progress) as notify:
            complete = run_stages(workloads, store, pool, notify, minutes, limit, checkpoints)
    except KeyboardInterrupt:
        if not any(workload.runs for workload in workloads):
            raise
        complete = False
    except Exception as error:
        error.add_note(f"Finished runs are kept in {store.where}: the same call continues from them.")
        raise
    return conclude(
        workloads[0],
        workloads[1:],
        experiments,
        complete=complete,
        machine=machine.facts() | {"workers": pool.workers, "executor": pool.executor},
        command=command,
        seconds=time.perf_counter() - start,
    )


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
