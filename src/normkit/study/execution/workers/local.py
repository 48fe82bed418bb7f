"""Workers on this machine: this process, or spawned processes with one torch thread each."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Generic

import cloudpickle
import torch
from pebble import ProcessExpired, ProcessPool

from normkit.errors import StateError
from normkit.study.execution.workers.pool import Failure, In, Out, attempt, one_thread


class ThisProcess:
    """Works in this process. An item cannot be stopped here, so `limit` has no effect."""

    workers = 1
    executor = "processes"

    def __init__(self, payload: Any) -> None:
        self.payload = payload

    def __enter__(self) -> ThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def work(
        self, function: Callable[[Any, In], Out], items: Iterable[In], limit: float | None = None
    ) -> Iterator[tuple[In, Out | Failure]]:
        """See `WorkerPool.work`."""
        for item in items:
            with one_thread():
                result = attempt(function, self.payload, item)
            yield item, result


class Processes:
    """Worker processes, each with the payload.

    They are spawned, not forked: a fork of a process whose torch has started threads can hang.
    """

    executor = "processes"

    def __init__(self, payload: Any, workers: int) -> None:
        self.payload, self.workers = payload, workers
        self.numbers = itertools.count()

    def __enter__(self) -> Processes:
        # Through a file: if a worker died before it has read a pipe, and the data did not fit into the pipe, this
        # process would wait for ever.
        self.folder = tempfile.TemporaryDirectory(prefix="normkit-")
        Path(self.folder.name, _PAYLOAD).write_bytes(cloudpickle.dumps(self.payload))
        self.pool = self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self.folder.cleanup()

    def work(
        self, function: Callable[[Any, In], Out], items: Iterable[In], limit: float | None = None
    ) -> Iterator[tuple[In, Out | Failure]]:
        """See `WorkerPool.work`."""
        waiting = iter(items)
        # Items whose pool broke before they were finished; they are submitted first.
        again: list[In] = []
        running: dict[Future[bytes], _Running[In]] = {}
        breaks = 0
        while True:
            try:
                while (
                    len(running) < self.workers and (item := again.pop() if again else next(waiting, _END)) is not _END
                ):
                    again.append(item)
                    entry = _Running(item, Path(self.folder.name, f"{next(self.numbers)}.pid"))
                    running[self._submit(function, entry, limit)] = entry
                    again.pop()
                if not running:
                    return
                results = self._finished(running, limit)
            except BrokenProcessPool as error:
                breaks += 1
                self._restart(breaks, error)
                again.extend(entry.item for entry in running.values())
                running = {}
                continue
            breaks = 0 if results else breaks
            yield from results

    def _submit(self, function: Callable[[Any, In], Any], entry: _Running[In], limit: float | None) -> Future[bytes]:
        try:
            return self.pool.schedule(_serve, (function, entry.item, str(entry.note)), timeout=limit)
        except RuntimeError as error:
            # A worker that dies while all workers are idle breaks the pool too.
            raise BrokenProcessPool from error

    def _finished(self, running: dict[Future[bytes], _Running[In]], limit: float | None) -> list[tuple[In, Any]]:
        """The results that arrive within a second; their items are removed from `running`."""
        done, waiting = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
        found = [(running[future].item, _result(future, limit)) for future in done]
        lost = [future for future in waiting if running[future].worker_lost()]
        if not done and not lost and not self.pool.active:
            raise BrokenProcessPool("the pool has stopped")
        found += [(running[future].item, Failure.died()) for future in lost]
        for future in (*done, *lost):
            del running[future]
        return found

    def _start(self) -> ProcessPool:
        context = multiprocessing.get_context("spawn")
        return ProcessPool(self.workers, initializer=_start_worker, initargs=(self.folder.name,), context=context)

    def _stop(self) -> None:
        self.pool.stop()  # type: ignore[no-untyped-call]
        self.pool.join()

    def _restart(self, breaks: int, error: BrokenProcessPool) -> None:
        """Replace a broken pool, unless pools break repeatedly or no worker has ever started."""
        started = any(Path(self.folder.name).glob(f"*{_STARTED}"))
        if breaks > _MOST_BREAKS or not started:
            raise StateError(_NO_WORKERS) from error
        self._stop()
        self.pool = self._start()


@dataclass
class _Running(Generic[In]):
    """An item in progress, and the file to which its worker writes its process id."""

    item: In
    note: Path
    missed: float | None = None

    def worker_lost(self) -> bool:
        """Whether its worker has been gone for longer than the pool needs to detect it.

        The pool does not detect a worker that dies just after it has taken an item, and would wait for it for ever.
        """
        if not self.note.exists() or not (number := self.note.read_text()):
            return False
        if number in {str(process.pid) for process in multiprocessing.active_children()}:
            self.missed = None
            return False
        self.missed = self.missed or time.monotonic()
        return time.monotonic() - self.missed > 2.0


_END: Any = object()
_PAYLOAD, _STARTED = "payload.pickle", ".started"
_MOST_BREAKS = 3
"""The number of pools that may break one after the other without a result between them."""
_NO_WORKERS = (
    "the training processes must live until their work is done, but one ended early. A script that "
    "calls compare must do so under `if __name__ == '__main__':`; otherwise memory may have run out: "
    "call again with workers=1, finished runs are kept"
)


def _result(future: Future[bytes], limit: float | None) -> Any:
    """The value, or the failure; the error of a broken pool is not caught."""
    try:
        return pickle.loads(future.result())
    except BrokenProcessPool:
        raise
    except TimeoutError:
        return Failure.past(limit)
    except ProcessExpired as error:
        return Failure.died(_cause(error.exitcode))
    except Exception as error:
        return Failure.of(error)


def _cause(code: int) -> str:
    """A description of an exit status.

    >>> _cause(-9)
    'killed by SIGKILL, as the system does when memory runs out'
    >>> _cause(3)
    'it ended with status 3'
    """
    if code >= 0:
        return f"it ended with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")


_payload: Any = None
"""In a worker process: the payload from the parent process."""


def _start_worker(folder: str) -> None:
    global _payload
    # An interrupt is sent to the whole process group; only the parent, which has the store, may handle it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, args=(folder,), daemon=True).start()
    torch.set_num_threads(1)
    _payload = pickle.loads(Path(folder, _PAYLOAD).read_bytes())
    Path(folder, f"{os.getpid()}{_STARTED}").touch()


def _follow_parent(folder: str) -> None:
    """End this process when its parent has ended, because nothing would read the results."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _serve(function: Callable[[Any, In], Out], item: In, note: str) -> bytes:
    Path(note).write_text(str(os.getpid()))
    # Pickled here, so that a value that cannot be pickled or unpickled fails this item and not the pool.
    try:
        return pickle.dumps(attempt(function, _payload, item))
    except Exception as error:
        return pickle.dumps(Failure.of(error))
