"""Worker pools: this process, several processes, or the machines of a Ray cluster.

A pool sends one object, the payload, to its workers once, and applies a function to the payload and each item. An item
that kills its worker, hangs or raises an error becomes a `Failure`; the other items are not affected.
"""

from __future__ import annotations

from typing import Any

from normkit.errors import ArgumentError, nearest
from normkit.study.execution import machine
from normkit.study.execution.workers import local, ranks
from normkit.study.execution.workers.pool import Failure, WorkerPool

__all__ = ["EXECUTORS", "Failure", "WorkerPool", "check_executor", "make_executor"]

EXECUTORS = ("processes", "ray")


def make_executor(
    payload: Any, workers: int | None, *, executor: str = "processes", address: str | None = None
) -> WorkerPool:
    """Make the worker pool of an executor.

    Args:
        payload: passed to the function with every item; anything that can be pickled.
        workers: number of items at the same time; None is one for each core, but at most 8 processes, or under
            torchrun one for each rank. 1 is this process itself, if `executor` is "processes".
        executor: "processes" or "ray".
        address: address of the Ray cluster; None uses a running one, else starts one on this machine.

    Raises:
        ArgumentError: there is no such executor, or an address without a cluster.
        StateError: a package is missing.

    >>> with make_executor(10, workers=1) as pool:
    ...     list(pool.work(divmod, [3, 0]))[0]
    (3, (3, 1))
    """
    check_executor(executor, address)
    if executor == "ray":
        from normkit.study.execution.workers.cluster import Cluster

        return Cluster(payload, workers, address)
    workers = workers or (1 if ranks.world() > 1 else min(machine.cores(), 8))
    return local.ThisProcess(payload) if workers == 1 else local.Processes(payload, workers)


def check_executor(executor: str, address: str | None) -> None:
    """Refuse an unknown executor, and an address without a cluster."""
    if executor not in EXECUTORS:
        raise ArgumentError(
            f"executor must be one of {', '.join(EXECUTORS)}, got {executor!r}: {nearest(executor, EXECUTORS)}"
        )
    if address is not None and executor != "ray":
        raise ArgumentError(
            f"address is that of a Ray cluster, got {address!r} with executor={executor!r}: give executor='ray' too"
        )
