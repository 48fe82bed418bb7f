"""The report of folding for training, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from normkit.tools.model.refusal import Refusal


@dataclass(frozen=True)
class Pair:
    """A layer and the norm that is folded into it.

    Attributes:
        layer, norm: where they are in the model.
    """

    layer: str
    norm: str

    def __str__(self) -> str:
        return f"{self.norm}: folded into {self.layer} while training"


@dataclass(frozen=True)
class FoldTrainingReport:
    """The report of `fold_for_training`.

    Attributes:
        pairs: the layers and norms that are one module now.
        refusals: the norms that stay, and why.
        graph: whether a graph of the model shows that every input takes the same path; otherwise the path is that of
            the example, and an input that takes another one is not covered.
    """

    pairs: tuple[Pair, ...]
    refusals: tuple[Refusal, ...]
    graph: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(map(str, [*self.pairs, *self.refusals])) or "no norm was folded"
