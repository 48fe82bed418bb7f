"""Local response normalization: divides by the energy of the neighbouring channels."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from normkit import functional
from normkit.layers.base.checks import named
from normkit.layers.base.layer import Layer, check_count


class LocalResponseNorm(Layer, nn.LocalResponseNorm):
    """Divide each value by a power of the mean square of its channel neighbours.

    ``y = x / (k + alpha * average(x ** 2 over size channels around)) ** beta``; channels beyond the edge
    count as 0. It has no parameters.

    Args:
        size: number of neighbouring channels, the channel itself among them.
        alpha, beta, k: the formula's constants.

    Returns:
        From ``forward``, for (N, C, positions ...): a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: a size below 1.
        ShapeError: from ``forward``, naming the layer: fewer than three dimensions.

    Example:
        >>> import torch, normkit
        >>> normkit.LocalResponseNorm(1, alpha=1.0, beta=1.0)(torch.ones(1, 1, 1))
        tensor([[[0.5000]]])

    Source: Krizhevsky, Sutskever & Hinton 2012, section 3.3.
    """

    options: ClassVar = {}

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        check_count(self, "size", size)
        self._accept()
        nn.LocalResponseNorm.__init__(self, size, alpha, beta, k)

    @named
    def forward(self, input: Tensor) -> Tensor:
        """Normalize."""
        return functional.local_response_norm(input, self.size, self.alpha, self.beta, self.k)
