"""Who does the work of a study: this process, several processes, or the machines of a Ray cluster.

A crew holds one object, sent to its workers once, and applies functions to it and to one item after another. An item
that kills its worker, hangs or raises is `Lost`; it takes no other item with it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

from normkit.errors import ArgumentError, nearest
from normkit.study import machine

In = TypeVar("In")
Out = TypeVar("Out")

EXECUTORS = ("processes", "ray")


@dataclass(frozen=True)
class Lost:
    """What is left of an item without a result: the reason in one line, and where it happened, if that is known."""

    reason: str
    trace: str = ""

    @classmethod
    def to(cls, error: BaseException) -> Lost:
        """What an exception that is being handled leaves behind.

        >>> try:
        ...     1 / 0
        ... except ZeroDivisionError as error:
        ...     Lost.to(error).reason
        'ZeroDivisionError: division by zero'
        """
        return cls(f"{type(error).__name__}: {error}", traceback.format_exc())


class Crew(Protocol):
    """Workers with one torch thread each, for as long as the `with` block lasts; `workers` items at a time."""

    workers: int
    executor: str

    def __enter__(self) -> Crew: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def work(
        self, function: Callable[[Any, In], Out], items: Iterable[In], limit: float | None = None
    ) -> Iterator[tuple[In, Out | Lost]]:
        """Apply `function(held, item)`, each result as soon as it is there, in any order.

        Args:
            function: found by its name in a worker, so it stands at the top of a module.
            items: asked for the next one only when a worker is free, so that they may depend on what has happened
                meanwhile.
            limit: seconds an item may take; after that its worker is stopped and the item is lost.

        Raises:
            StateError: no worker can be started.
        """
        ...


def muster(held: Any, workers: int | None, *, executor: str = "processes", address: str | None = None) -> Crew:
    """The crew for an executor.

    Args:
        held: what every item is worked on with; anything that can be pickled.
        workers: how many items are worked on at a time; None is one for each core, but at most 8 processes, or
            under torchrun one for each rank. 1 is this process itself, if `executor` is "processes".
        executor: "processes" or "ray".
        address: of the Ray cluster; None is one that is found running, else one made on this machine.

    Raises:
        ArgumentError: there is no such executor, or an address without a cluster.
        StateError: a package is missing.

    >>> with muster(10, workers=1) as crew:
    ...     list(crew.work(divmod, [3, 0]))[0]
    (3, (3, 1))
    """
    if executor not in EXECUTORS:
        raise ArgumentError(
            f"executor must be one of {', '.join(EXECUTORS)}, got {executor!r}: {nearest(executor, EXECUTORS)}"
        )
    if address is not None and executor != "ray":
        raise ArgumentError(
            f"address is that of a Ray cluster, got {address!r} with executor={executor!r}: give executor='ray' too"
        )
    if executor == "ray":
        from normkit.study.crew.cluster import Cluster

        return Cluster(held, workers, address)
    from normkit.study.crew import local, ranks

    workers = workers or (1 if ranks.world() > 1 else min(machine.cores(), 8))
    return local.Alone(held) if workers == 1 else local.Processes(held, workers)
