"""Local response normalization: divides by the energy of the neighbouring channels. No region, but a window."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from normkit.errors import ArgumentError, whole_number
from normkit.functional.call.checks import check_call, check_dimensions
from normkit.kernels.dtypes import arithmetic_dtype


def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """Divide each value by a power of the mean square of its channel neighbours.

    ``y = x / (k + alpha * average(x ** 2 over size channels around)) ** beta``; channels beyond the edge count as 0.

    Args:
        input: (N, C, ...) with at least one dimension of positions, any strides.
        size: number of neighbouring channels, the channel itself among them.
        alpha, beta, k: the formula's constants.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: fewer than three dimensions.
        ArgumentError: a size below 1.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> functional.local_response_norm(torch.ones(1, 1, 1), size=1, alpha=1.0, beta=1.0)
        tensor([[[0.5000]]])

    Source: Krizhevsky, Sutskever & Hinton 2012, section 3.3.
    """
    check_call("local_response_norm", input, 0.0)
    check_dimensions("local_response_norm", input, 3, "(N, C, positions ...)")
    size = whole_number("size of local_response_norm", size)
    if size < 1:
        raise ArgumentError(f"size of local_response_norm must be at least 1, got {size}: use 5")
    if input.numel() == 0:
        return input * 1
    x = input.to(arithmetic_dtype(input.dtype))
    energy = x.square().flatten(2).unsqueeze(1)
    energy = F.avg_pool2d(F.pad(energy, (0, 0, size // 2, (size - 1) // 2)), (size, 1), stride=1)
    y = x * (energy.reshape(x.shape) * alpha + k).pow(-beta)
    return y.to(input.dtype)
