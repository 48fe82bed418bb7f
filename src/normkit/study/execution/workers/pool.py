"""The interface of all worker pools, and what they return for an item without a result."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Failure:
    """The outcome of an item without a result: the reason in one line, and the traceback, if there is one.

    `lost` says that its worker died or was stopped, so that a part of the item may have a result.
    """

    reason: str
    trace: str = ""
    lost: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The failure for an exception that is being handled.

        >>> try:
        ...     1 / 0
        ... except ZeroDivisionError as error:
        ...     Failure.of(error).reason
        'ZeroDivisionError: division by zero'
        """
        return cls(f"{type(error).__name__}: {error}", traceback.format_exc())

    @classmethod
    def past(cls, limit: float | None) -> Failure:
        """The failure for an item that took longer than its time limit."""
        return cls(f"it ran past its time limit of {limit:g} s and was stopped", lost=True)

    @classmethod
    def died(cls, cause: str = "") -> Failure:
        """The failure for an item whose process died."""
        return cls(f"its process died{cause and f': {cause}'}", lost=True)


class WorkerPool(Protocol):
    """Workers with one torch thread each, which exist during the `with` block; `workers` items at the same time."""

    workers: int
    executor: str

    def __enter__(self) -> WorkerPool: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def work(
        self, function: Callable[[Any, In], Out], items: Iterable[In], limit: float | None = None
    ) -> Iterator[tuple[In, Out | Failure]]:
        """Apply `function(payload, item)` to all items; results are yielded as they arrive, in any order.

        Args:
            function: a function at the top level of a module, because workers find it by its name.
            items: the next one is requested only when a worker is free, so items may depend on earlier results.
            limit: seconds an item may take; after that its worker is stopped and the item fails.

        Raises:
            StateError: no worker can be started.
        """
        ...


def attempt(function: Callable[[Any, In], Out], payload: Any, item: In) -> Out | Failure:
    """The value, or the failure for an exception; an interrupt is not caught."""
    try:
        return function(payload, item)
    except Exception as error:
        return Failure.of(error)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, and restore the number of threads afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
