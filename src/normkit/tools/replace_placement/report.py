"""The report of `replace_placement`, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from normkit.tools.model.refusal import Refusal
from normkit.tools.replace_placement.residuals import Found, Placement


@dataclass(frozen=True)
class BlockChange:
    """One residual block.

    Attributes:
        name: of the norm that was moved or kept, as it is called in the model.
        module: class of the module that computes the sum.
        before, after: the placements; "output" is that of OLMo 2.
        added, removed: names of norms.
        share: root mean square of the branch over that of the input of the block, before the change.
        gain: what calibration multiplied the branch by; None without calibration, or where there is nothing to scale.
    """

    name: str
    module: str
    before: Found
    after: Placement
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    share: float = 0.0
    gain: float | None = None

    def __str__(self) -> str:
        moved = self.before if self.before == self.after else f"{self.before} -> {self.after}"
        parts = [f"{self.name}: {moved}"]
        parts += [f"new {', '.join(self.added)}"] if self.added else []
        parts += [f"removed {', '.join(self.removed)}"] if self.removed else []
        parts += [] if self.gain is None else [f"branch x {self.gain:.3g}, share {self.share:.3g}"]
        return "; ".join(parts)


@dataclass(frozen=True)
class StackChange:
    """A norm at the beginning or at the end of a stack of blocks.

    Attributes:
        name: of the norm.
        place: "stem" for the input of the first block, "final" for the end.
        change: "added", "removed" or "kept".
        gain: what calibration multiplied its weight by.
    """

    name: str
    place: str
    change: str
    gain: float | None = None

    def __str__(self) -> str:
        what = {"stem": "norm of the input of the stack", "final": "norm at the end of the stack"}[self.place]
        return f"{self.name}: {what}, {self.change}" + ("" if self.gain is None else f", weight x {self.gain:.3g}")


@dataclass(frozen=True)
class PlacementReport:
    """The report of `replace_placement`.

    Attributes:
        to: the placement that was asked for.
        blocks: one row for each residual block that has it now.
        stacks: the norms at the ends of the stacks.
        refusals: the blocks that stay as they were, and why.
    """

    to: Placement
    blocks: tuple[BlockChange, ...] = ()
    stacks: tuple[StackChange, ...] = ()
    refusals: tuple[Refusal, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(map(str, [*self.blocks, *self.stacks, *self.refusals])) or "no residual block was found"
