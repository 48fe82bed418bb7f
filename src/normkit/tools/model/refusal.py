"""Why a tool leaves a norm or a layer as it is: the exception inside the tools, and the row of a report."""

from __future__ import annotations

from dataclasses import dataclass


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
