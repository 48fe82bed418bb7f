"""What every worker pool offers, and what it returns for an item without a result."""

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
    """The outcome of an item without a result: the reason in one line, and the traceback, if there is one."""

    reason: str
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The failure by an exception that is being handled.

        >>> try:
        ...     1 / 0
        ... except ZeroDivisionError as error:
        ...     Failure.of(error).reason
        'ZeroDivisionError: division by zero'
        """
        return cls(f"{type(error).__name__}: {error}", traceback.format_exc())

    @classmethod
    def past(cls, limit: float | None) -> Failure:
        """The failure of an item that took longer than its time limit."""
        return cls(f"it ran past its time limit of {limit:g} s and was stopped")


class WorkerPool(Protocol):
    """Workers with one torch thread each, for as long as the `with` block lasts; `workers` items at a time."""

    workers: int
    executor: str

    def __enter__(self) -> WorkerPool: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def work(
        self, function: Callable[[Any, In], Out], items: Iterable[In], limit: float | None = None
    ) -> Iterator[tuple[In, Out | Failure]]:
        """Apply `function(payload, item)`; each result is yielded as soon as it is there, in any order.

        Args:
            function: at the top level of a module, because workers find it by its name.
            items: asked for the next one only when a worker is free, so that they may depend on earlier results.
            limit: seconds an item may take; after that its worker is stopped and the item fails.

        Raises:
            StateError: no worker can be started.
        """
        ...


def attempt(function: Callable[[Any, In], Out], payload: Any, item: In) -> Out | Failure:
    """The value, or the failure by an exception; an interrupt is passed on."""
    try:
        return function(payload, item)
    except Exception as error:
        return Failure.of(error)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread; the former number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
