"""What becomes of the norms of a block under another placement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from normkit.tools.replace_placement.record import Event
from normkit.tools.replace_placement.residuals import Placement, Residual

ROLES: dict[Placement, frozenset[str]] = {
    "pre": frozenset({"input"}),
    "post": frozenset({"sum"}),
    "peri": frozenset({"input", "output"}),
    "sandwich": frozenset({"input", "output"}),
}
"""Where the norms of a block are under each placement."""


@dataclass(eq=False)
class Roles:
    """The norms of one block after the change: an event where it stays, a name of a module where it is new.

    Attributes:
        residual: the block.
        primary: the norm that others are made like.
        moved: the norm that changes its place, and where to.
        made: the roles of new norms.
        dropped: norms that are removed.
    """

    residual: Residual
    primary: Event
    moved: dict[str, Event] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    dropped: list[Event] = field(default_factory=list)


def roles(residual: Residual, to: Placement, added: Callable[[Event], bool]) -> Roles:
    """What becomes of the norms of a block.

    Args:
        residual: the block.
        to: its new placement.
        added: whether an earlier change has added a norm: then the model's own one is moved in preference to it.
    """
    held = {"input": residual.input_norm, "sum": residual.after_sum, "output": residual.output_norm}
    found = {role: norm for role, norm in held.items() if norm is not None}
    result = Roles(residual, residual.norms[0])
    free = [norm for role, norm in found.items() if role not in ROLES[to]]
    own = next((norm for norm in free if not added(norm)), None)
    for role in sorted(ROLES[to]):
        if role in found and own is not None and added(found[role]):
            free[free.index(own)] = found.pop(role)
            result.moved[role], result.primary, own = own, own, None
        elif role not in found and free:
            result.moved[role] = free.pop(0)
        elif role not in found:
            result.made.append(role)
    result.dropped = free
    return result
