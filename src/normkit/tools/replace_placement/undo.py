"""What a change of a model has replaced, so that an exception on the way leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Undo:
    """What a change has replaced, so that it can be put back."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [(module, type(module), dict(vars(module)), dict(module._modules)) for module in model.modules()]
        self.values: dict[torch.Tensor, torch.Tensor] = {}

    def keep(self, tensors: Iterable[torch.Tensor]) -> None:
        """Remember the values of tensors that will be written to."""
        for tensor in tensors:
            self.values.setdefault(tensor, tensor.detach().clone())

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for module, cls, attributes, children in self.modules:
            module.__class__ = cls
            vars(module).clear()
            vars(module).update(attributes)
            module._modules.clear()
            module._modules.update(children)
        for tensor, value in self.values.items():
            tensor.copy_(value)
