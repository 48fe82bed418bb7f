"""Adaptive instance normalization: each channel gets mean and deviation of the same channel of a style."""

from __future__ import annotations

import torch
from torch import Tensor

from normkit.errors import ShapeError
from normkit.functional.call.checks import check_call
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.layers.base.checks import check_channels, check_rank, named
from normkit.layers.base.layer import Layer, check_count, check_eps
from normkit.layers.instance import InstanceNorm2d
from normkit.layers.modulated.base import modulated

LAYOUTS = {4: "(N, C, H, W)"}


class AdaIN(Layer):
    """Give each channel of each image the mean and the deviation that it has in a style.

    ``y = (x - mean(x)) / std(x) * std(style) + mean(style)`` with ``std(x) = sqrt(var(x) + eps)``, over height and
    width of each sample and channel; no parameters, the same in training and evaluation.

    Args:
        num_features: number of channels C.
        eps: added to both variances, in units of the input squared.

    Returns:
        From ``forward``, for x (N, C, H, W) and the features of a style (N, C, H', W'), or one style (1, C, H', W') for
        all: a tensor with the shape, dtype and memory layout of x.

    Raises:
        ArgumentError: num_features below 1, eps below 0.
        ShapeError: from ``forward``, naming the layer: a single position in x, or another rank or number of channels or
            samples.

    Example:
        >>> import torch, normkit
        >>> style = 3 * torch.randn(2, 16, 5, 5) + 1
        >>> y = normkit.AdaIN(16)(torch.randn(2, 16, 8, 8), style)
        >>> torch.allclose(y.mean((2, 3)), style.mean((2, 3)), atol=1e-5)
        True

    Source: Huang & Belongie 2017, arXiv:1703.06868.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        check_count(self, "num_features", num_features)
        check_eps(self, eps)
        self._accept(activation=None)
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.norm = InstanceNorm2d(num_features, eps)

    @named
    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Normalize, then scale and shift as the style is."""
        for t in (x, style):
            check_call("the layer", t, self.eps)
            check_rank(t, LAYOUTS)
            check_channels(t, 1, self.num_features)
        if style.shape[0] not in (1, x.shape[0]):
            raise ShapeError(
                f"there must be a style for each of the {x.shape[0]} samples, or one for all, got {style.shape[0]}: "
                "repeat the styles"
            )
        style = style.to(arithmetic_dtype(style.dtype))
        var, mean = torch.var_mean(style, (2, 3), correction=0, keepdim=True)
        return modulated(self.norm, x, (var + self.eps).sqrt(), mean)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"
