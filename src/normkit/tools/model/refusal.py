"""Why a tool leaves a norm or a layer as it is: the exception inside the tools, and the row of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from normkit.errors import StateError


class RefusedError(Exception):
    """Why a module stays as it is; a tool catches it and reports a `Refusal`."""


@dataclass(frozen=True)
class Refusal:
    """One module that stays as it is although a change was asked for.

    Attributes:
        name: where it is in the model.
        module: what it is: its class, or its class and arguments.
        reason: why it stays.
    """

    name: str
    module: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.module} stays, {self.reason}"


def refuse_strictly(
    strict: bool, refusals: Sequence[Refusal], rule: str = "no norm to stay, {} do", remedy: str = "leave it out"
) -> None:
    """With `strict`, raise for what stays; ``{}`` in the rule is the number.

    Raises:
        StateError: with all rows.
    """
    if strict and refusals:
        rows = "\n".join(f"    {row}" for row in refusals)
        raise StateError(f"strict=True allows {rule.format(len(refusals))}:\n{rows}\n{remedy}")
