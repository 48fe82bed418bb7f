"""Root mean square normalization: layer normalization without the mean."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor, nn

from normkit import functional
from normkit.functional.extras import Extras, Output
from normkit.functional.precision import Cast
from normkit.layers._checks import checked, with_activation


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
        cast: ``"after"``: the weight is multiplied in float32, the result cast to the input's dtype; ``"before"``:
            the cast comes first, as in Llama. No difference in float32.
        zero_centered: the weight is kept around 0 and 1 is added to it, as in Gemma.
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

    options: ClassVar = {"cast": "after", "zero_centered": False}
    cast: Cast
    zero_centered: bool

    def reset_parameters(self) -> None:
        """Weight as if it were 1, bias 0."""
        super().reset_parameters()
        if self.zero_centered and self.weight is not None:
            nn.init.zeros_(self.weight)

    def forward(self, x: Tensor, **extras: Unpack[Extras]) -> Output:
        """Normalize; `extras`: mask, lengths, residual, activation, return_residual, as in `normkit.functional`."""
        return functional.rms_norm(
            x,
            self.normalized_shape,
            self.weight,
            self.eps,
            cast=self.cast,
            zero_centered=self.zero_centered,
            **with_activation(self, extras),
        )
