"""Worker processes with one torch thread each."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import torch

from normkit.errors import StateError

In = TypeVar("In")
Out = TypeVar("Out")


class Crew:
    """Worker processes that hold the task; with one worker the work is done in this process.

    Spawned rather than forked: a fork of a process whose torch has started threads can hang.
    """

    def __init__(self, held: Any, workers: int) -> None:
        self.held = held
        self.pool: ProcessPoolExecutor | None = None
        if workers > 1:
            # Through a file: a worker that dies at its start, before it has read a pipe, would leave this process
            # waiting for it for ever if the data did not fit into the pipe.
            self.parcel = tempfile.TemporaryDirectory()
            path = Path(self.parcel.name, "task.pickle")
            path.write_bytes(cloudpickle.dumps(held))
            self.pool = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), initializer=_enlist, initargs=(path,)
            )

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            self.parcel.cleanup()

    def work(self, function: Callable[[Any, In], Out], inputs: Sequence[In]) -> Iterator[tuple[In, Out]]:
        """The items with the results of `function(held, item)`, each as soon as it is there, in any order."""
        if self.pool is None:
            for item in inputs:
                with one_thread():
                    result = function(self.held, item)
                yield item, result
            return
        try:
            futures = {self.pool.submit(_serve, function, item): item for item in inputs}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise StateError(
                "the training processes must live until their work is done, but one ended early. A script that "
                "calls compare must do so under `if __name__ == '__main__':`; otherwise memory may have run out: "
                "call again with workers=1, finished runs are kept"
            ) from error


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


def _enlist(parcel: Path) -> None:
    global _held
    # An interrupt reaches the whole process group; only the parent may answer, it has the store.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _held = pickle.loads(parcel.read_bytes())


def _serve(function: Callable[[Any, In], Out], item: In) -> Out:
    return function(_held, item)
