"""The work done on this machine: in this process, or in spawned ones with one torch thread each."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from pebble import ProcessExpired, ProcessPool

from normkit.errors import StateError
from normkit.study.crew import In, Lost, Out


class Alone:
    """Does the work in this process. An item cannot be stopped here, so `limit` has no effect."""

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

    def __init__(self, held: Any, workers: int) -> None:
        self.workers = workers
        # Through a file: a worker that dies at its start, before it has read a pipe, would leave this process
        # waiting for it for ever if the data did not fit into the pipe.
        self.parcel = tempfile.TemporaryDirectory(prefix="normkit-")
        Path(self.parcel.name, "held.pickle").write_bytes(pickle.dumps(held))
        self.pool = self._pool()

    def __enter__(self) -> Processes:
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
        running: dict[Future[bytes], In] = {}
        breaks = 0
        while True:
            while len(running) < self.workers:
                try:
                    item = again.pop() if again else next(waiting)
                except StopIteration:
                    break
                running[self.pool.schedule(_serve, (function, item), timeout=limit)] = item
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            try:
                results = [(running[future], _result(future, limit)) for future in done]
            except BrokenProcessPool as error:
                breaks += 1
                if breaks > _PATIENCE or not self._enlisted():
                    raise StateError(_NO_WORKERS) from error
                again.extend(running.values())
                running = {}
                self._stop()
                self.pool = self._pool()
                continue
            breaks = 0
            for future in done:
                del running[future]
            yield from results

    def _pool(self) -> ProcessPool:
        context = multiprocessing.get_context("spawn")
        return ProcessPool(self.workers, initializer=_enlist, initargs=(self.parcel.name,), context=context)

    def _stop(self) -> None:
        self.pool.stop()  # type: ignore[no-untyped-call]
        self.pool.join()

    def _enlisted(self) -> bool:
        """Whether any worker has lived to the end of its start."""
        return any(Path(self.parcel.name).glob("*.enlisted"))


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
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(1)
    _held = pickle.loads(Path(parcel, "held.pickle").read_bytes())
    Path(parcel, f"{os.getpid()}.enlisted").touch()


def _follow_parent() -> None:
    """End this process when its parent is gone, however it went: nobody would read the results."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _serve(function: Callable[[Any, In], Out], item: In) -> bytes:
    # Pickled here: what cannot be sent, or not be read again, must cost this item and not the pool.
    try:
        return pickle.dumps(attempt(function, _held, item))
    except Exception as error:
        return pickle.dumps(Lost.to(error))
