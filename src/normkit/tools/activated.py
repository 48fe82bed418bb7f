"""Layers that only a conversion makes: a norm with the activation it brought along, and a norm without statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack, cast

import torch
from torch import Tensor, nn

from normkit.functional.extras import Extras, Output
from normkit.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    LayerNorm2d,
    Norm,
    RMSNorm,
)
from normkit.layers._checks import check_channels, check_rank


class ChannelAffine(nn.Module):
    """Scale and shift each channel: what is left of a norm whose statistics are constants.

    ``y = x * weight + bias``.

    Args:
        num_channels: number of channels C.
        device, dtype: of the parameters.

    Returns:
        From ``forward``, for (N, C, ...): a tensor with the input's shape and dtype.

    Raises:
        ShapeError: from ``forward``: fewer than two dimensions, or another number of channels.

    Example:
        >>> ChannelAffine(3)(torch.ones(2, 3, 4)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(
        self, num_channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.weight = nn.Parameter(torch.ones(num_channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_channels, device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        """Scale and shift."""
        if input.dim() < 2:
            check_rank(input, {2: "(N, C, ...)"})
        check_channels(input, 1, self.num_channels)
        shape = (-1, *(1,) * (input.dim() - 2))
        return torch.addcmul(self.bias.view(shape), input, self.weight.view(shape))

    def extra_repr(self) -> str:
        return f"{self.num_channels}"


class _Onward(nn.Module):
    """Abstract: what the norm brought along comes after it, ``drop`` and then ``act``."""

    def forward(self, input: Tensor, **extras: Unpack[Extras]) -> Output:
        """Normalize, then drop and activate."""
        y = super().forward(input, **extras)
        for name in ("drop", "act"):
            child = self._modules.get(name)
            y = y if child is None else child(y)
        return y


class BatchNorm1dAct(_Onward, BatchNorm1d):
    """`normkit.BatchNorm1d`, then ``drop`` and ``act``."""


class BatchNorm2dAct(_Onward, BatchNorm2d):
    """`normkit.BatchNorm2d`, then ``drop`` and ``act``."""


class BatchNorm3dAct(_Onward, BatchNorm3d):
    """`normkit.BatchNorm3d`, then ``drop`` and ``act``."""


class InstanceNorm1dAct(_Onward, InstanceNorm1d):
    """`normkit.InstanceNorm1d`, then ``drop`` and ``act``."""


class InstanceNorm2dAct(_Onward, InstanceNorm2d):
    """`normkit.InstanceNorm2d`, then ``drop`` and ``act``."""


class InstanceNorm3dAct(_Onward, InstanceNorm3d):
    """`normkit.InstanceNorm3d`, then ``drop`` and ``act``."""


class GroupNormAct(_Onward, GroupNorm):
    """`normkit.GroupNorm`, then ``drop`` and ``act``."""


class LayerNormAct(_Onward, LayerNorm):
    """`normkit.LayerNorm`, then ``drop`` and ``act``."""


class LayerNorm2dAct(_Onward, LayerNorm2d):
    """`normkit.LayerNorm2d`, then ``drop`` and ``act``."""


class RMSNormAct(_Onward, RMSNorm):
    """`normkit.RMSNorm`, then ``drop`` and ``act``."""


class NormAct(_Onward, Norm):
    """`normkit.Norm`, then ``drop`` and ``act``."""


class ChannelAffineAct(_Onward, ChannelAffine):
    """`ChannelAffine`, then ``drop`` and ``act``."""


class LayerNorm2dLast(LayerNorm2dAct):
    """`normkit.LayerNorm2d` whose output is channels-last, as of a layer norm between two permutes.

    What follows such a norm was run in that layout; a convolution can be a third slower in the other.
    """

    def forward(self, input: Tensor, **extras: Unpack[Extras]) -> Output:
        """Normalize."""
        if input.dim() == 4:
            input = input.contiguous(memory_format=torch.channels_last)
        return super().forward(input, **extras)


_ACTIVATED: dict[type[nn.Module], type[nn.Module]] = {
    cast("type[nn.Module]", cls.__bases__[1]): cls
    for cls in (
        BatchNorm1dAct,
        BatchNorm2dAct,
        BatchNorm3dAct,
        InstanceNorm1dAct,
        InstanceNorm2dAct,
        InstanceNorm3dAct,
        GroupNormAct,
        LayerNormAct,
        LayerNorm2dAct,
        RMSNormAct,
        NormAct,
        ChannelAffineAct,
    )
}


def activated(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that applies ``drop`` and ``act`` after this one of normkit's, or itself if it does."""
    return _ACTIVATED.get(cls, cls)


def fusible(extras: Mapping[str, nn.Module]) -> str | None:
    """The name of the activation, where what a norm brought along is that alone; ``none`` for nothing at all.

    >>> fusible({"drop": nn.Identity(), "act": nn.SiLU(inplace=True)})
    'silu'
    """
    if not isinstance(extras.get("drop", nn.Identity()), nn.Identity):
        return None
    match extras.get("act", nn.Identity()):
        case nn.Identity():
            return "none"
        case nn.LeakyReLU(negative_slope=0.01):
            return "leaky_relu"
        case nn.GELU(approximate="tanh"):
            return "gelu_tanh"
        case act:
            return _NAMES.get(type(act))


_NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}


def module_of(activation: str) -> nn.Module:
    """The activation as a module of its own.

    >>> module_of("gelu_tanh")
    GELU(approximate='tanh')
    """
    made = {name: cls for cls, name in _NAMES.items()}
    if activation in made:
        return made[activation]()
    return nn.GELU(approximate="tanh") if activation == "gelu_tanh" else nn.LeakyReLU()
