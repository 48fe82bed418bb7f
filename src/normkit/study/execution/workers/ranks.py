"""A call under torchrun: every rank is a worker, and the ranks share only the store.

No rank communicates with another, so none waits for one that has died, and `torchrun` may restart it. Rank 0
measures the step times, after its trials, and writes the report.
"""

from __future__ import annotations

import os

from normkit.errors import ArgumentError


def world() -> int:
    """The number of ranks; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this rank, from 0."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def local_world() -> int:
    """The number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world()))


def check(executor: str, file: bool) -> None:
    """Refuse arguments with which every rank or machine would do all of the work.

    Args:
        executor: as in `make_executor`.
        file: whether the store is a file, which other machines cannot read.
    """
    if world() == 1:
        return
    if executor != "processes":
        raise ArgumentError(
            f"under torchrun each rank does a part of the work itself, got executor={executor!r}: leave that out, "
            "or start without torchrun"
        )
    if file and local_world() < world():
        raise ArgumentError(
            "under torchrun on several machines the store must be a server that all of them reach, got a file: give "
            "store='postgresql+psycopg://user@host/name'"
        )
