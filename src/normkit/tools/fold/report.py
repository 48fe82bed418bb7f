"""The report of folding, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from normkit.tools.model.refusal import Refusal


@dataclass(frozen=True)
class Fold:
    """One norm that is gone, or its weight and bias.

    Attributes:
        name, names: where it was; several names if it was shared.
        norm: its class.
        into: the layer that does its work now; several are separated by commas.
        side: whether that layer is ``"before"`` or ``"after"`` the norm.
        left: what replaced it: ``Identity``, its activation, or the norm without weight and bias.
        layers: the names of the layers in `into`.
        new_keys: the parameters that were added for it, by their names in the state dict.
        untied: the parameters that were shared with other modules before and now belong to a layer alone.
        added_bytes: the memory that `untied` takes.
        taken: the parameters that the norm stays without, ``"weight"`` or ``"bias"``; none if it is gone.
    """

    name: str
    names: tuple[str, ...]
    norm: str
    into: str
    side: str
    left: str
    layers: tuple[str, ...] = ()
    new_keys: tuple[str, ...] = ()
    untied: tuple[str, ...] = ()
    added_bytes: int = 0
    taken: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = f"{' and '.join(self.taken)} of {self.norm}" if self.taken else self.norm
        left = "" if self.taken or self.left == "Identity" else f", {self.left} stays"
        new = f", new: {', '.join(self.new_keys)}" if self.new_keys else ""
        untied = f", untied: {', '.join(self.untied)} ({self.added_bytes / 1e6:.3g} MB)" if self.untied else ""
        return f"{self.name}: {what} folded into {self.into}{left}{new}{untied}"


@dataclass(frozen=True)
class FoldReport:
    """The report of `fold`.

    Attributes:
        folds: the norms that are gone, and those that have no weight and bias any more.
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
