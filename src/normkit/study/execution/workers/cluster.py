"""Workers of a Ray cluster: each item is a task on one core of any machine, and on its share of a GPU."""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import cloudpickle

from normkit.errors import StateError
from normkit.study.execution.workers.pool import Failure, In, Out, attempt, one_thread


class Cluster:
    """Tasks of a Ray cluster. A cluster started here ends with the pool; one that was running before continues.

    Every machine of the cluster needs the same normkit and torch. Ray retries nothing: an item fails if its worker
    dies, also if the cause is the machine and not the item.

    Args:
        payload: sent to the cluster once.
        workers: number of tasks at the same time; None is one for each core of the cluster.
        address: "auto", "ray://host:10001" or "host:6379"; None uses a running cluster, else starts one here.

    Raises:
        StateError: ray is not installed, or nothing answers at the address.
    """

    executor = "ray"

    def __init__(self, payload: Any, workers: int | None, address: str | None) -> None:
        # Imported here, so that this module can be imported without Ray.
        try:
            import ray
        except ModuleNotFoundError as error:
            raise StateError(
                f'executor="ray" needs a package that is not installed ({error.name}): pip install "normkit[ray]"'
            ) from error
        self.ray: Any = ray
        self.payload, self.asked, self.address = payload, workers, address
        self.workers = workers or 1
        self.running: dict[Any, tuple[Any, float]] = {}

    def __enter__(self) -> Cluster:
        self.found = self.ray.is_initialized()
        if not self.found:
            # Turn off the usage statistics of Ray.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                _connect(self.address)
                self.ray.init(self.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError, TimeoutError, OSError) as error:
                raise StateError(
                    f"a Ray cluster must answer at the address, got {self.address!r} ({_line(error)}): start one with "
                    "ray start --head, or leave the address out to make one on this machine"
                ) from error
        resources = self.ray.cluster_resources()
        cores, gpus = int(resources.get("CPU", 1)), resources.get("GPU", 0.0)
        # More tasks than cores would wait, and their time limit would run meanwhile.
        self.workers = max(1, min(self.asked or cores, cores))
        # Rounded down: Ray counts in ten thousandths.
        share = min(1.0, math.floor(1e4 * gpus / self.workers) / 1e4)
        self.task: Any = self.ray.remote(num_cpus=1, num_gpus=share, max_retries=0)(_serve)
        self.place = self.ray.put(cloudpickle.dumps(self.payload))
        return self

    def __exit__(self, *_: object) -> None:
        for reference in self.running:
            self.ray.cancel(reference, force=True)
        self.running.clear()
        if not self.found:
            self.ray.shutdown()

    def work(
        self, function: Callable[[Any, In], Out], items: Iterable[In], limit: float | None = None
    ) -> Iterator[tuple[In, Out | Failure]]:
        """See `WorkerPool.work`."""
        waiting = iter(items)
        end: Any = object()
        while True:
            while len(self.running) < self.workers and (item := next(waiting, end)) is not end:
                self.running[self.task.remote(function, self.place, item, limit)] = (item, time.monotonic())
            if not self.running:
                return
            done, _ = self.ray.wait(list(self.running), num_returns=1)
            for reference in done:
                item, start = self.running.pop(reference)
                yield item, self._result(reference, limit, time.monotonic() - start)

    def _result(self, reference: Any, limit: float | None, seconds: float) -> Any:
        """The value, or the failure."""
        try:
            return pickle.loads(self.ray.get(reference))
        except (self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.NodeDiedError) as error:
            # The worker ends itself at the limit; Ray only reports that it is gone.
            if limit is not None and seconds >= limit:
                return Failure.past(limit)
            return Failure.died(_line(error))
        except Exception as error:
            return Failure.of(error)


def _connect(address: str | None) -> None:
    """Raise an OSError at once if nothing listens at the address; Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def _line(error: BaseException) -> str:
    """The first sentence of a message from Ray; the rest is about its logs."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0]


@lru_cache(maxsize=1)
def _unpickled(payload: bytes) -> Any:
    """The payload, kept from one item to the next, so that its trainer keeps what it has learned about the models."""
    return pickle.loads(payload)


def _serve(function: Callable[[Any, In], Out], payload: bytes, item: In, limit: float | None) -> bytes:
    """In a worker of the cluster: process one item; a timer that needs no Python code ends it at the limit."""
    with open(os.devnull, "w") as nowhere:
        if limit is not None:
            faulthandler.dump_traceback_later(limit, exit=True, file=nowhere)
        try:
            with one_thread():
                return pickle.dumps(attempt(function, _unpickled(payload), item))
        except Exception as error:
            return pickle.dumps(Failure.of(error))
        finally:
            faulthandler.cancel_dump_traceback_later()
