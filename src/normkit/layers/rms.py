"""Root mean square normalization: layer normalization without the mean."""

from __future__ import annotations

from torch import Tensor, nn

from normkit import functional
from normkit.layers._checks import checked


@checked
class RMSNorm(nn.RMSNorm):
    """Divide the last dimensions by their root mean square.

    ``y = x / sqrt(mean(x ** 2) + eps) * weight``, the mean over `normalized_shape`; the same in training and
    evaluation.

    Args:
        normalized_shape: the sizes of the last dimensions; one number for the last alone.
        eps: added to the mean square; None for the machine epsilon of the arithmetic, which is float32's for
            half-precision input.
        elementwise_affine: whether there is a weight, of shape `normalized_shape`.
        device, dtype: of the weight; float32 may stand beside half-precision input.

    Returns:
        From ``forward``: a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: eps below 0, a size below 1.
        ShapeError: from ``forward``, naming the layer: the input does not end with `normalized_shape`.

    Example:
        >>> import torch, normkit
        >>> normkit.RMSNorm(2)(torch.tensor([3.0, 4.0])).detach()
        tensor([0.8485, 1.1314])

    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        return functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)
