"""What `kernelize` did: the norms whose forward was exchanged, and those that keep theirs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from torch import nn

from normkit.errors import StateError
from normkit.tools.kernelize.layers import is_one
from normkit.tools.model.refusal import Refusal
from normkit.tools.model.tree import module_places

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Kernelized:
    """One norm whose forward was exchanged.

    Attributes:
        name: where it is in the model.
        module: its class, which it keeps.
        hook: the name that its class has for the hook.
        computes: what its forward calls.
    """

    name: str
    module: str
    hook: str
    computes: str

    def __str__(self) -> str:
        return f"{self.name}: {self.module} ({self.hook}) -> {self.computes}"


@dataclass(frozen=True)
class KernelizeReport:
    """The report of `kernelize`.

    Attributes:
        changes: the norms whose forward was exchanged.
        refusals: those that keep theirs, and why.
        kept: names of the norms that compute with normkit already.
    """

    changes: tuple[Kernelized, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    kept: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(map(str, [*self.changes, *self.refusals])) or "no norm was changed"

    def revert(self, model: M) -> M:
        """Give the norms the forward of their class again, in place.

        Args:
            model: the one that was changed, or a copy of it.

        Returns:
            The model.

        Raises:
            StateError: a norm is no longer there, or has another forward; nothing is changed then.
        """
        places = {name: place.module for place in module_places(model) for name in place.names}
        for change in self.changes:
            if not is_one(vars(places.get(change.name, model)).get("forward")):
                raise StateError(
                    f"revert needs the model as kernelize left it, and {change.name!r} has another forward or is not "
                    "there: undo later changes first"
                )
        for change in self.changes:
            del vars(places[change.name])["forward"]
        return model
