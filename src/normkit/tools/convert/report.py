"""The report of a conversion, as data, and how to revert the conversion."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from normkit.errors import StateError
from normkit.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normkit.tools.convert.build import scale_and_shift
from normkit.tools.convert.calibrate import Fitted
from normkit.tools.convert.fade import Fade
from normkit.tools.convert.torch_encoder import encoder_layers, turn_on
from normkit.tools.model.info import NormInfo
from normkit.tools.model.refusal import Refusal
from normkit.tools.model.tree import module_places, replace
from normkit.tools.model.wrapped import refuse_wrapped

M = TypeVar("M", bound=nn.Module)


def as_text(module: nn.Module, info: NormInfo | None = None) -> str:
    """A norm in a few words: with its package, or with its arguments."""
    name = type(module).__name__
    return f"{info.origin} {name}" if info else f"{name}({module.extra_repr()})"


@dataclass(frozen=True)
class Change:
    """One norm that was exchanged.

    Attributes:
        name, names: where it is; several names if it is shared.
        old, new: the layers in words.
        method: what it is now, as in the catalog.
        note: a difference from the request, such as another number of groups.
        residual: after calibration, the root of the mean square error over the standard deviation of the old
            outputs; None without.
    """

    name: str
    names: tuple[str, ...]
    old: str
    new: str
    method: str
    note: str = ""
    residual: float | None = None
    original: nn.Module = field(repr=False, compare=False, kw_only=True)
    made: str = field(repr=False, compare=False, kw_only=True)
    """The name of the class that it has now, which stays when that is frozen."""
    folded: bool = field(repr=False, compare=False, kw_only=True)
    given: dict[str, Tensor] = field(repr=False, compare=False, kw_only=True)
    """The values that the conversion chose itself, to tell whether they have been trained since."""

    def __str__(self) -> str:
        also = f" (also {', '.join(self.names[1:])})" if len(self.names) > 1 else ""
        left = "" if self.residual is None else f"residual {self.residual:.3g}"
        return ", ".join(part for part in (f"{self.name}{also}: {self.old} -> {self.new}", self.note, left) if part)

    def with_note(self, note: str, residual: float | None = None) -> Change:
        """The same with a further note, and with a residual if there is one."""
        note = f"{self.note}; {note}" if self.note else note
        return dataclasses.replace(self, note=note, residual=self.residual if residual is None else residual)

    def fitted(self, new: nn.Module, fit: Fitted) -> Change:
        """Give the new layer what was fitted. Its parameters are new ones: the old layer keeps its own."""
        values = {"weight": fit.weight, "bias": fit.bias}
        for name, value in values.items():
            old = new._parameters.get(name)
            if old is not None and value is not None:
                new._parameters[name] = nn.Parameter(value.clone(), old.requires_grad)
        if isinstance(new, BatchNorm1d | BatchNorm2d | BatchNorm3d) and new.running_mean is not None:
            new.running_mean.copy_(fit.mean)
            new.running_var.copy_(fit.variance)  # type: ignore[union-attr]
        given = {name: value for name, value in values.items() if value is not None}
        return dataclasses.replace(self, residual=fit.residual, given=given)


@dataclass(frozen=True)
class ConvertReport:
    """The report of `convert`.

    Attributes:
        changes: the norms that were exchanged.
        refusals: those that were not, and why.
        kept: names of the norms that were not to be converted, or that were normkit's own already.
    """

    changes: tuple[Change, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    kept: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        hidden = ("original", "made", "folded", "given")
        changes = [
            {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name not in hidden}
            for row in self.changes
        ]
        return {"changes": changes, "refusals": [vars(row) for row in self.refusals], "kept": list(self.kept)}

    def __str__(self) -> str:
        return "\n".join(map(str, [*self.changes, *self.refusals])) or "no norm was changed"

    def revert(self, model: M) -> M:
        """Put the original norms back, in place, with the weight, bias and statistics of now.

        Weights that the conversion chose itself (by calibration or folding) and that have not been trained since
        are replaced by the original ones.

        Args:
            model: the converted one, or a copy of it.

        Returns:
            The model.

        Raises:
            StateError: a converted norm is no longer there, or the model is wrapped for several processes; nothing is
                changed then.
        """
        places = {name: place for place in module_places(model) for name in place.names}
        new: dict[nn.Module, nn.Module] = {}
        for change in self.changes:
            place = places.get(change.name)
            there = "nothing" if place is None else type(place.module).__name__
            if place is not None and isinstance(place.module, Fade):
                new[place.module] = place.module.norm
                continue
            if place is None or there != change.made:
                raise StateError(
                    f"revert needs the model as convert left it; it made {change.name!r} a {change.made}, "
                    f"and there is {there}: undo later changes first"
                )
            new[place.module] = _restored(change, place.module)
        same = all(_tensors(old) == _tensors(successor) for old, successor in new.items())
        refuse_wrapped(model, "revert", same_tensors=same)
        layers = [layer for change in self.changes for layer in encoder_layers(places[change.name])]
        model = replace(model, new)  # type: ignore[assignment]  # the root itself may be a norm
        turn_on(model, layers)
        return model


def _tensors(module: nn.Module) -> set[int]:
    return {id(tensor) for tensor in (*module.parameters(), *module.buffers())}


@torch.no_grad()
def _restored(change: Change, current: nn.Module) -> nn.Module:
    """The original with the present state; a copy of its shell, because a report may revert several models."""
    module = copy.copy(change.original)
    state = vars(module)
    state.update(_parameters=dict(module._parameters), _buffers=dict(module._buffers), _modules=dict(module._modules))
    module._modules.update({key: child for key, child in current._modules.items() if key in module._modules})
    untrained = all(torch.equal(current._parameters[key].cpu(), value.cpu()) for key, value in change.given.items())  # type: ignore[union-attr]
    for key, old in module._parameters.items():
        now = current._parameters.get(key)
        if old is not None and now is not None and now.shape == old.shape:
            if change.given:
                module._parameters[key] = nn.Parameter(old.to(now.device, now.dtype, copy=True), now.requires_grad)
            else:
                module._parameters[key] = now
    like = next((p for p in current._parameters.values() if p is not None), None)
    for key, buffer in module._buffers.items():
        now_buffer = current._buffers.get(key)
        if now_buffer is not None and buffer is not None and now_buffer.shape == buffer.shape:
            module._buffers[key] = now_buffer
        elif buffer is not None and like is not None:
            kind = like.dtype if buffer.is_floating_point() else buffer.dtype
            module._buffers[key] = buffer.to(like.device, kind, copy=True)
    if change.given and not untrained:
        _take_over(module, current, change.folded)
    return module


def _take_over(module: Any, current: Any, folded: bool) -> None:
    """Weight and bias as they were trained; a folded scale is divided by what the statistics contribute."""
    weight, bias = current.weight, getattr(current, "bias", None)
    if folded:
        unit = copy.copy(module)
        vars(unit).update(_parameters={"weight": None, "bias": None})
        inverse, _ = scale_and_shift(unit)
        bias = bias + module.running_mean * weight
        weight = weight / inverse
    for name, value in (("weight", weight), ("bias", bias)):
        if module._parameters.get(name) is not None and value is not None:
            module._parameters[name].copy_(value)
