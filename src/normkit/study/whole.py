"""A study from its benches to its comparison, however it ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from normkit.study import machine
from normkit.study.claims.experiment import Experiment
from normkit.study.comparison import Comparison, conclude
from normkit.study.conduct import Bench, Progress, conduct
from normkit.study.crew import Crew
from normkit.study.store import Store


def carry_out(
    benches: Sequence[Bench],
    experiments: Sequence[Experiment],
    store: Store,
    crew: Crew,
    *,
    progress: Progress,
    minutes: float | None = None,
    limit: float | None = None,
    command: str = "",
) -> Comparison:
    """Do what is not in the store yet, and conclude from all of it.

    An interrupt (Ctrl-C) ends the study early: what is stored is concluded from, with `complete` False; with
    nothing stored the interrupt is passed on.

    Args:
        benches: that of the answer first.
        experiments: what is asked of them.
        store: where finished runs are.
        crew: who works; it holds the tasks and designs of the benches.
        progress: called with (runs finished, runs in all, what is running).
        minutes: after which no further run begins.
        limit: seconds a run may take.
        command: for the report, what repeats the study.

    Raises:
        StateError: the store cannot be used, or no process can be started.
    """
    start = time.perf_counter()
    try:
        with crew, _insisting(progress) as tell:
            complete = conduct(benches, store, crew, tell, minutes, limit)
    except KeyboardInterrupt:
        if not any(bench.runs for bench in benches):
            raise
        complete = False
    except Exception as error:
        error.add_note(f"Finished runs are kept in {store.where}: the same call goes on from them.")
        raise
    return conclude(
        benches[0],
        benches[1:],
        experiments,
        complete=complete,
        machine=machine.facts() | {"workers": crew.workers, "executor": crew.executor},
        command=command,
        seconds=time.perf_counter() - start,
    )


@contextmanager
def _insisting(progress: Progress) -> Iterator[Progress]:
    """The progress that interrupts the study if an interrupt has been lost.

    A KeyboardInterrupt is raised wherever the main thread happens to be. In a destructor Python drops it, and so may
    code of other packages; nothing would end the study then.
    """
    asked = threading.Event()

    def tell(done: int, total: int, what: str) -> None:
        progress(done, total, what)
        if asked.is_set():
            raise KeyboardInterrupt

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.default_int_handler(number, frame)

    # A handler of the user's stays, and only the main thread may set one.
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield progress
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield tell
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
