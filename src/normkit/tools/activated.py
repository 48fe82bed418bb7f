"""Layers that only a conversion makes: a norm with the activation it brought along, and a norm without statistics."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

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


def _onward(layer: nn.Module, y: Tensor) -> Tensor:
    """What the norm brought along: ``drop``, then ``act``."""
    for name in ("drop", "act"):
        child = layer._modules.get(name)
        if child is not None:
            y = child(y)
    return y


class BatchNorm1dAct(BatchNorm1d):
    """`normkit.BatchNorm1d`, then ``drop`` and ``act``."""

    def forward(self, input: Tensor) -> Tensor:
        return _onward(self, super().forward(input))


class BatchNorm2dAct(BatchNorm2d):
    """`normkit.BatchNorm2d`, then ``drop`` and ``act``."""

    def forward(self, input: Tensor) -> Tensor:
        return _onward(self, super().forward(input))


class BatchNorm3dAct(BatchNorm3d):
    """`normkit.BatchNorm3d`, then ``drop`` and ``act``."""

    def forward(self, input: Tensor) -> Tensor:
        return _onward(self, super().forward(input))


class InstanceNorm1dAct(InstanceNorm1d):
    """`normkit.InstanceNorm1d`, then ``drop`` and ``act``."""

    def forward(self, input: Tensor) -> Tensor:
        return _onward(self, super().forward(input))


class InstanceNorm2dAct(InstanceNorm2d):
    """`normkit.InstanceNorm2d`, then ``drop`` and ``act``."""

    def forward(self, input: Tensor) -> Tensor:
        return _onward(self, super().forward(input))


class InstanceNorm3dAct(InstanceNorm3d):
    """`normkit.InstanceNorm3d`, then ``drop`` and ``act``."""

    def forward(self, input: Tensor) -> Tensor:
        return _onward(self, super().forward(input))


class GroupNormAct(GroupNorm):
    """`normkit.GroupNorm`, then ``drop`` and ``act``."""

    def forward(self, input: Tensor) -> Tensor:
        return _onward(self, super().forward(input))


class LayerNormAct(LayerNorm):
    """`normkit.LayerNorm`, then ``drop`` and ``act``."""

    def forward(self, input: Tensor) -> Tensor:
        return _onward(self, super().forward(input))


class LayerNorm2dAct(LayerNorm2d):
    """`normkit.LayerNorm2d`, then ``drop`` and ``act``."""

    def forward(self, input: Tensor) -> Tensor:
        return _onward(self, super().forward(input))


class LayerNorm2dLast(LayerNorm2d):
    """`normkit.LayerNorm2d` whose output is channels-last, as of a layer norm between two permutes.

    What follows such a norm was run in that layout; a convolution can be a third slower in the other.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 4:
            input = input.contiguous(memory_format=torch.channels_last)
        return _onward(self, super().forward(input))


class RMSNormAct(RMSNorm):
    """`normkit.RMSNorm`, then ``drop`` and ``act``."""

    def forward(self, x: Tensor) -> Tensor:
        return _onward(self, super().forward(x))


class NormAct(Norm):
    """`normkit.Norm`, then ``drop`` and ``act``."""

    def forward(self, x: Tensor) -> Tensor:
        return _onward(self, super().forward(x))


class ChannelAffineAct(ChannelAffine):
    """`ChannelAffine`, then ``drop`` and ``act``."""

    def forward(self, input: Tensor) -> Tensor:
        return _onward(self, super().forward(input))


_ACTIVATED: dict[type[nn.Module], type[nn.Module]] = {
    cast("type[nn.Module]", cls.__base__): cls
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
