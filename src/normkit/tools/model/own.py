"""Methods with a formula of their own, which is no region with weight and bias.

normkit's layers are known by their class. A module of another library is compared with the layer that its parameters
suggest: outputs, gradients and running statistics on random inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from torch import nn

from normkit import catalog
from normkit.layers import (
    DynamicErf,
    DynamicTanh,
    EvoNorm2dB0,
    EvoNorm2dS0,
    FilterResponseNorm2d,
    GlobalResponseNorm,
    IterNorm,
    PowerNorm,
    ScaleNorm,
    SwitchableNorm,
)
from normkit.layers.base.layer import Layer
from normkit.tools.model.info import NormInfo

CLASSES: tuple[type[Layer], ...] = (
    FilterResponseNorm2d,
    GlobalResponseNorm,
    ScaleNorm,
    EvoNorm2dB0,
    EvoNorm2dS0,
    DynamicTanh,
    DynamicErf,
    SwitchableNorm,
    PowerNorm,
    IterNorm,
)
KINDS: dict[str, type[Layer]] = {catalog.find(cls.__name__).name: cls for cls in CLASSES}
"""The methods, and the layer of each."""

OF_IMAGES = (FilterResponseNorm2d, EvoNorm2dB0, EvoNorm2dS0)

STATE = {
    frozenset({"weight", "bias", "tau"}): FilterResponseNorm2d,
    frozenset({"weight", "bias", "v"}): EvoNorm2dS0,
    frozenset({"weight", "bias", "v", "running_var"}): EvoNorm2dB0,
}
"""The parameters and buffers of the layers of other libraries, beyond weight and bias alone."""


class FilterResponseNormTlu2d(FilterResponseNorm2d):
    """`normkit.FilterResponseNorm2d` with its threshold under the name that timm has for it."""

    threshold_name = "tau"


def class_of(module: nn.Module) -> type[Layer] | None:
    """Which of the layers of this file a module of normkit is."""
    return next((cls for cls in CLASSES if isinstance(module, cls)), None)


def described(module: nn.Module, cls: type[Layer], info: NormInfo) -> NormInfo:
    """The description of one of normkit's layers."""
    known: Any = module
    shape = known.normalized_shape if hasattr(known, "normalized_shape") else (known.num_features,)
    last = getattr(known, "channels_last", cls is ScaleNorm)
    return replace(
        info,
        kind=catalog.find(cls.__name__).name,
        shape=tuple(shape),
        axis="last" if last else "first",
        rank=2 if cls in OF_IMAGES else None,
        groups=getattr(known, "num_groups", None),
        eps=getattr(known, "eps", 0.0),
    )


def names_of_state(module: nn.Module) -> frozenset[str]:
    """The parameters and buffers that a module has itself."""
    state = (*module._parameters.items(), *module._buffers.items())
    return frozenset(name for name, value in state if value is not None)


def guesses(module: nn.Module, info: NormInfo, possible_eps: list[float]) -> Iterator[NormInfo]:
    """What a module of another library may be, by the names and shapes of its state."""
    names, weight = names_of_state(module), module._parameters.get("weight")
    if weight is None or weight.numel() != max(weight.shape):
        return
    info = replace(info, shape=(weight.numel(),), axis="first")
    for eps in possible_eps:
        info = replace(info, eps=eps)
        if names == {"weight", "bias"}:
            for axis in ("last", "first"):
                yield replace(info, kind="global_response_norm", axis=cast(Any, axis))
            yield replace(info, kind="filter_response_norm", rank=2)
        elif names in STATE:
            cls = STATE[names]
            info = replace(info, kind=catalog.find(cls.__name__).name, rank=2)
            for groups in _possible_groups(module, info.channels) if cls is EvoNorm2dS0 else (None,):
                yield replace(info, groups=groups)


def _possible_groups(module: nn.Module, channels: int) -> list[int]:
    numbers = {key: value for key, value in vars(module).items() if type(value) is int and 0 < value <= channels}
    return [value for key, value in numbers.items() if "groups" in key and channels % value == 0]


def choice(module: nn.Module, info: NormInfo) -> tuple[type[Layer], dict[str, Any]]:
    """normkit's layer for a description, and its arguments."""
    cls = KINDS[info.kind or ""]
    arguments: dict[str, Any] = {"num_features": info.channels, "eps": info.eps}
    if cls is GlobalResponseNorm:
        arguments |= {"channels_last": info.axis == "last"}
    elif cls is EvoNorm2dB0:
        arguments |= {"momentum": module.momentum}
    elif cls is EvoNorm2dS0:
        arguments |= {"num_groups": info.groups}
    elif cls is FilterResponseNorm2d:
        renamed = module._parameters.get("tau") is not None
        cls = FilterResponseNormTlu2d if renamed else cls
        arguments |= {"affine": info.weight, "threshold": renamed or module._parameters.get("threshold") is not None}
    return cls, arguments


def adopt(layer: nn.Module, module: nn.Module) -> None:
    """Give a layer all parameters and buffers of another one, in the order of that one."""
    for own, theirs in ((layer._parameters, module._parameters), (layer._buffers, module._buffers)):
        taken: dict[str, Any] = {name: value for name, value in theirs.items() if own.get(name) is not None}
        rest: dict[str, Any] = {name: value for name, value in own.items() if name not in taken}
        cast("dict[str, Any]", own).clear()
        cast("dict[str, Any]", own).update(taken | rest)


def twin(module: nn.Module, info: NormInfo) -> nn.Module:
    """normkit's layer with the parameters and buffers of another module."""
    cls, arguments = choice(module, info)
    like = next(module.parameters())
    layer = cls(**arguments, device=like.device, dtype=like.dtype).train(module.training)
    adopt(layer, module)
    return layer
