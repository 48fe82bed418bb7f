"""Which norms of a model keep running statistics."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def keeps_statistics(module: nn.Module) -> bool:
    """Whether this is a batch or instance norm, torch's or a subclass of it, that has running statistics."""
    return isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None


def statistics_of(norm: _NormBase) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a norm that keeps them."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def norms_of(model: nn.Module) -> dict[str, _NormBase]:
    """Each batch and instance norm once, under its first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _NormBase)}
