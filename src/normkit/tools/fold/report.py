"""The report of folding, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from normkit.tools.model.refusal import Refusal


@dataclass(frozen=True)
class Fold:
    """One norm that is gone.

    Attributes:
        name, names: where it was; several names if it was shared.
        norm: its class.
        into: the layer that does its work now.
        side: whether that layer is ``"before"`` or ``"after"`` the norm.
        left: what replaced it: ``Identity``, or its activation.
    """

    name: str
    names: tuple[str, ...]
    norm: str
    into: str
    side: str
    left: str

    def __str__(self) -> str:
        left = "" if self.left == "Identity" else f", {self.left} stays"
        return f"{self.name}: {self.norm} folded into {self.into}{left}"


@dataclass(frozen=True)
class FoldReport:
    """The report of `fold`.

    Attributes:
        folds: the norms that are gone.
        refusals: those that stay, and why.
        graph: whether symbolic tracing shows that every input takes the same path; otherwise the path is that of the
            example, and an input that takes another one is not covered.
        error: largest difference of an output on the example from before, of the output's largest value.
        tolerance: what it was allowed to be.
    """

    folds: tuple[Fold, ...]
    refusals: tuple[Refusal, ...]
    graph: bool
    error: float
    tolerance: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        inputs = "for every input" if self.graph else "for inputs that take the same path as the example"
        tail = f"{len(self.folds)} folded, {len(self.refusals)} stay; {inputs}; outputs changed by {self.error:.1e}"
        return "\n".join(map(str, [*self.folds, *self.refusals, tail]))
