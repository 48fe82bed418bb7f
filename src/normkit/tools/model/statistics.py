"""Which norms of a model keep running statistics, and what these do in evaluation."""

from __future__ import annotations

from typing import Any

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


def scale_and_shift(norm: Any, eps: float) -> tuple[Tensor, Tensor]:
    """What a norm does to each channel in evaluation, ``y = x * scale + shift``, in float64."""
    scale = (norm.running_var.detach().double() + eps).rsqrt()
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -norm.running_mean.detach().double() * scale
    return scale, shift if bias is None else shift + bias.detach().double()


def batch_and_instance_norms(model: nn.Module) -> dict[str, _NormBase]:
    """Each batch and instance norm once, under its first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _NormBase)}
