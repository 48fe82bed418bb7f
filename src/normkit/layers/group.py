"""Group normalization: a group of channels of one sample."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from normkit import functional
from normkit.functional.extras import Extras, Output
from normkit.layers._checks import check_channels, checked, with_activation
from normkit.layers._versions import TakesBias


@checked
class GroupNorm(TakesBias, nn.GroupNorm):
    """Normalize groups of channels of each sample.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and variance over the channels of a group and
    all positions; the same in training and evaluation.

    Args:
        num_groups: must divide `num_channels`.
        num_channels: number of channels C.
        eps: added to the variance, in units of the input squared.
        affine: whether there are weight and bias, of shape (C,).
        device, dtype: of the parameters; float32 may stand beside half-precision input.
        bias: whether there is a bias beside the weight.

    Returns:
        From ``forward``, for (N, C, ...): a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: a count below 1, eps below 0, or groups that do not divide the channels.
        ShapeError: from ``forward``, naming the layer: another number of channels, or a group of one value.

    Example:
        >>> import torch, normkit
        >>> normkit.GroupNorm(2, 4)(torch.tensor([[1.0, 3.0, 10.0, 30.0]])).detach()
        tensor([[-1.0000,  1.0000, -1.0000,  1.0000]])

    Source: Wu & He 2018, arXiv:1803.08494.
    """

    def forward(self, input: Tensor, **extras: Unpack[Extras]) -> Output:
        """Normalize; `extras`: mask, lengths, residual, activation, return_residual, as in `normkit.functional`."""
        if input.dim() > 1:
            check_channels(input, 1, self.num_channels)
        return functional.group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps, **with_activation(self, extras)
        )
