"""The work done on this machine: in this process, or in spawned ones with one torch thread each."""

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
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Generic

import cloudpickle
import torch
from pebble import ProcessExpired, ProcessPool

from normkit.errors import StateError
from normkit.study.crew import In, Lost, Out


class Alone:
    """Does the work in this process. An item cannot be stopped here, so `limit` has no effect."""

    workers = 1
    executor = "processes"

    def __init__(self, held: Any) -> None:
        self.held = held

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def work(
        self, function: Callable[[Any, In], Out], items: Iterable[In], limit: float | None = None
    ) -> Iterator[tuple[In, Out | Lost]]:
        """See `Crew.work`."""
        for item in items:
            with one_thread():
                result = attempt(function, self.held, item)
            yield item, result


class Processes:
    """Worker processes that hold the object.

    Spawned rather than forked: a fork of a process whose torch has started threads can hang.
    """

    executor = "processes"

    def __init__(self, held: Any, workers: int) -> None:
        self.held, self.workers = held, workers
        self.tickets = itertools.count()

    def __enter__(self) -> Processes:
        # Through a file: a worker that dies at its start, before it has read a pipe, would leave this process
        # waiting for it for ever if the data did not fit into the pipe.
        self.parcel = tempfile.TemporaryDirectory(prefix="normkit-")
        Path(self.parcel.name, "held.pickle").write_bytes(cloudpickle.dumps(self.held))
        self.pool = self._pool()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self.parcel.cleanup()

    def work(
        self, function: Callable[[Any, In], Out], items: Iterable[In], limit: float | None = None
    ) -> Iterator[tuple[In, Out | Lost]]:
        """See `Crew.work`."""
        waiting = iter(items)
        # Items whose pool broke before they were done; they come first.
        again: list[In] = []
        running: dict[Future[bytes], _Place[In]] = {}
        breaks = 0
        while True:
            try:
                while (
                    len(running) < self.workers and (item := again.pop() if again else next(waiting, _END)) is not _END
                ):
                    again.append(item)
                    place = _Place(item, Path(self.parcel.name, f"{next(self.tickets)}.at"))
                    running[self._schedule(function, place, limit)] = place
                    again.pop()
                if not running:
                    return
                results = self._finished(running, limit)
            except BrokenProcessPool as error:
                breaks += 1
                if breaks > _PATIENCE or not self._enlisted():
                    raise StateError(_NO_WORKERS) from error
                again.extend(place.item for place in running.values())
                running = {}
                self._stop()
                self.pool = self._pool()
                continue
            breaks = 0 if results else breaks
            yield from results

    def _schedule(self, function: Callable[[Any, In], Any], place: _Place[In], limit: float | None) -> Future[bytes]:
        try:
            return self.pool.schedule(_serve, (function, place.item, str(place.note)), timeout=limit)
        except RuntimeError as error:
            # A worker that dies when all are idle breaks the pool, too.
            raise BrokenProcessPool from error

    def _finished(self, running: dict[Future[bytes], _Place[In]], limit: float | None) -> list[tuple[In, Any]]:
        """The results that are there after at most a second, taken out of what is running."""
        done, waiting = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
        found = [(running[future].item, _result(future, limit)) for future in done]
        lost = [future for future in waiting if running[future].deserted()]
        if not done and not lost and not self.pool.active:
            raise BrokenProcessPool("the pool has stopped")
        found += [(running[future].item, Lost("its process died")) for future in lost]
        for future in (*done, *lost):
            del running[future]
        return found

    def _pool(self) -> ProcessPool:
        context = multiprocessing.get_context("spawn")
        return ProcessPool(self.workers, initializer=_enlist, initargs=(self.parcel.name,), context=context)

    def _stop(self) -> None:
        self.pool.stop()  # type: ignore[no-untyped-call]
        self.pool.join()

    def _enlisted(self) -> bool:
        """Whether any worker has lived to the end of its start."""
        return any(Path(self.parcel.name).glob("*.enlisted"))


@dataclass
class _Place(Generic[In]):
    """An item at work, and the file in which its worker notes its number."""

    item: In
    note: Path
    missed: float | None = None

    def deserted(self) -> bool:
        """Whether its worker has been gone for longer than the pool takes to notice.

        The pool overlooks a worker that dies within a moment of taking an item, and would wait for it for ever.
        """
        if not self.note.exists() or not (number := self.note.read_text()):
            return False
        if number in {str(process.pid) for process in multiprocessing.active_children()}:
            self.missed = None
            return False
        self.missed = self.missed or time.monotonic()
        return time.monotonic() - self.missed > 2.0


_END: Any = object()
_PATIENCE = 3
"""Pools that may break one after the other without a result between them."""
_NO_WORKERS = (
    "the training processes must live until their work is done, but one ended early. A script that "
    "calls compare must do so under `if __name__ == '__main__':`; otherwise memory may have run out: "
    "call again with workers=1, finished runs are kept"
)


def _result(future: Future[bytes], limit: float | None) -> Any:
    """The value, or why there is none; a broken pool is passed on."""
    try:
        return pickle.loads(future.result())
    except BrokenProcessPool:
        raise
    except TimeoutError:
        return Lost(f"it ran past its time limit of {limit:g} s and was stopped")
    except ProcessExpired as error:
        return Lost(f"its process died: {_cause(error.exitcode)}")
    except Exception as error:
        return Lost.to(error)


def _cause(code: int) -> str:
    """An exit status in words.

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


def attempt(function: Callable[[Any, In], Out], held: Any, item: In) -> Out | Lost:
    """The value, or what an exception leaves of the item; an interrupt is passed on."""
    try:
        return function(held, item)
    except Exception as error:
        return Lost.to(error)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, the former number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_held: Any = None
"""In a worker process: what its parent gave it."""


def _enlist(parcel: str) -> None:
    global _held
    # An interrupt reaches the whole process group; only the parent may answer, it has the store.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, args=(parcel,), daemon=True).start()
    torch.set_num_threads(1)
    _held = pickle.loads(Path(parcel, "held.pickle").read_bytes())
    Path(parcel, f"{os.getpid()}.enlisted").touch()


def _follow_parent(parcel: str) -> None:
    """End this process when its parent is gone, however it went: nobody would read the results."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    shutil.rmtree(parcel, ignore_errors=True)
    os._exit(1)


def _serve(function: Callable[[Any, In], Out], item: In, note: str) -> bytes:
    Path(note).write_text(str(os.getpid()))
    # Pickled here: what cannot be sent, or not be read again, must cost this item and not the pool.
    try:
        return pickle.dumps(attempt(function, _held, item))
    except Exception as error:
        return pickle.dumps(Lost.to(error))
