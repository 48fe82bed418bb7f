"""Changes a model as planned: centres parameters, exchanges norms, splits shared parameters; and undoes that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normkit.tools.convert.build import other
from normkit.tools.fold.check import distance
from normkit.tools.model.info import NormInfo
from normkit.tools.model.refusal import RefusedError
from normkit.tools.model.tree import replace
from normkit.tools.to_rms_norm.channels import Channels
from normkit.tools.to_rms_norm.report import Centred


def rms_norm_of(norm: nn.Module, info: NormInfo) -> nn.Module:
    """normkit's layer with the parameters of a layer norm that does not subtract the mean.

    Raises:
        RefusedError: there is none.
    """
    return other(norm, info, "rms_norm", groups=None, shapes=[], add_affine=False)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that a module has itself."""
    found = {**module._parameters, **module._buffers}
    return {key: tensor for key, tensor in found.items() if tensor is not None}


class Change:
    """Changes to a model that can be undone.

    Args:
        model: changed in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.entries: list[tuple[dict[str, Any], str, Any]] = []
        self.attributes: dict[nn.Module, dict[str, Any]] = {}
        self.successors: dict[nn.Module, nn.Module] = {}

    def set(self, holder: dict[str, Any], key: str, value: Any) -> None:
        """Exchange an entry of a dictionary, such as the parameters of a module."""
        self.entries.append((holder, key, holder[key]))
        holder[key] = value

    @torch.no_grad()
    def centre(self, name: str, channels: Channels) -> Centred:
        """Take the mean of the channels out of a parameter or buffer, in all modules that hold it."""
        path, _, key = name.rpartition(".")
        old = tensors_of(self.model.get_submodule(path))[key]
        before = old.detach().double()
        exact = channels.centred(before)
        new = torch.empty_like(old).copy_(exact)
        if not bool(new.isfinite().all()):
            raise RefusedError(f"{name!r} without its mean would not be finite in {old.dtype}")
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, old.requires_grad)
        self.exchange(old, new)
        mean, rounding = distance(exact, before), distance(new, exact)
        return Centred(name, tuple(old.shape), channels.dim, channels.blocks, channels.ones is not None, mean, rounding)

    def exchange(self, old: Tensor, new: Tensor, but: nn.Module | None = None) -> None:
        """Give another tensor to all modules that hold this one, other than `but`."""
        for module in self.model.modules():
            for holder in (module._parameters, module._buffers):
                for key in [key for key, tensor in holder.items() if tensor is old and module is not but]:
                    self.set(holder, key, new)

    def convert(self, norms: Mapping[str, NormInfo]) -> None:
        """Replace layer norms by RMS norms."""
        found = {self.model.get_submodule(name): info for name, info in norms.items()}
        new = {norm: rms_norm_of(norm, info) for norm, info in found.items()}
        self.attributes = {norm: dict(vars(norm)) for norm in new}
        self.successors = new
        replace(self.model, new)

    def undo(self) -> None:
        """Everything as it was: parameters are the same objects again."""
        if self.successors:
            replace(self.model, {new: norm for norm, new in self.successors.items()})
        for norm, attributes in self.attributes.items():
            vars(norm).clear()
            vars(norm).update(attributes)
        for holder, key, value in reversed(self.entries):
            holder[key] = value
        self.entries, self.attributes, self.successors = [], {}, {}
