"""Which norms of a model keep running statistics, and what these do in evaluation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from normkit.layers import EvoNorm2dB0, IterNorm, PowerNorm, SwitchableNorm

KEPT: dict[type[nn.Module], tuple[str, ...]] = {
    _NormBase: ("running_mean", "running_var"),
    SwitchableNorm: ("running_mean", "running_var"),
    EvoNorm2dB0: ("running_var",),
    PowerNorm: ("running_phi",),
    IterNorm: ("running_mean", "running_whitening"),
}
"""The statistics of inputs that each kind of norm keeps. Power norm also keeps one of gradients."""


def kind_of(module: nn.Module) -> type[nn.Module] | None:
    """The kind of norm in `KEPT`: batch and instance norms are one kind; None for any other module."""
    return next((kind for kind in KEPT if isinstance(module, kind)), None)


def statistics_of(norm: nn.Module) -> dict[str, Tensor]:
    """The running statistics of the inputs of a norm, by name; empty if it keeps none."""
    kind = kind_of(norm)
    found = {name: getattr(norm, name) for name in (() if kind is None else KEPT[kind])}
    return {} if any(value is None for value in found.values()) else found


def keeps_statistics(module: nn.Module) -> bool:
    """Whether it is a norm of torch or normkit, or a subclass of one, that has running statistics."""
    return bool(statistics_of(module))


def scale_and_shift(norm: Any, eps: float) -> tuple[Tensor, Tensor]:
    """What a norm does to each channel in evaluation, ``y = x * scale + shift``, in float64."""
    scale = (norm.running_var.detach().double() + eps).rsqrt()
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -norm.running_mean.detach().double() * scale
    return scale, shift if bias is None else shift + bias.detach().double()


def norms_of_statistics(model: nn.Module) -> dict[str, nn.Module]:
    """Each norm of a kind that can keep running statistics once, under its first name."""
    return {name: module for name, module in model.named_modules() if kind_of(module) is not None}
