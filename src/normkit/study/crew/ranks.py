"""A call under torchrun: every rank is a worker of its own, and the store they share is all that joins them.

No rank talks to another, so none waits for one that has died, and `torchrun` may start it again. Rank 0 measures the
step times, when nothing else of it is running, and writes the report.
"""

from __future__ import annotations

import os

from normkit.errors import ArgumentError


def world() -> int:
    """The number of ranks; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def check(executor: str, file: bool) -> None:
    """Refuse what would do all of the work once for each rank or node.

    Args:
        executor: who does the work.
        file: whether the store is a file, which other machines do not see.
    """
    if world() == 1:
        return
    if executor != "processes":
        raise ArgumentError(
            f"under torchrun each rank does a share of the work itself, got executor={executor!r}: leave that out, "
            "or start without torchrun"
        )
    if file and int(os.environ.get("LOCAL_WORLD_SIZE", world())) < world():
        raise ArgumentError(
            "under torchrun on several machines the store must be a server that all of them reach, got a file: give "
            "store='postgresql+psycopg://user@host/name'"
        )
