"""Root mean square normalization: layer normalization without the mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, overload

import torch
from torch import Tensor, nn

from normkit import functional
from normkit.functional.call.precision import Cast
from normkit.functional.extras import Epilogues, Output
from normkit.layers.base.checks import named
from normkit.layers.base.layer import LastDims, Shape, check_eps, checked_shape, registered


class RMSNorm(LastDims, nn.RMSNorm):
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
        zero_centered: the weight is stored around 0, and 1 is added to it, as in Gemma.
        device, dtype: of the weight; float32 is possible with half-precision input.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

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

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        cast: Cast = "after",
        zero_centered: bool = False,
    ) -> None:
        check_eps(self, eps)
        shape = checked_shape(self, normalized_shape)
        self._accept(activation=activation, cast=cast, zero_centered=zero_centered)
        nn.RMSNorm.__init__(self, shape, eps, elementwise_affine, device, dtype)

    @overload
    def forward(self, x: Tensor, **fused: Unpack[Epilogues]) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, *, return_residual: bool, **fused: Unpack[Epilogues]) -> Output: ...
    @named
    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        residual: Tensor | None = None,
        return_residual: bool = False,
        activation: str | None = None,
        gate: Tensor | None = None,
        skip: Tensor | None = None,
        gate_activation: str | None = None,
        gate_first: bool = False,
    ) -> Output:
        """Normalize; keywords as in `normkit.functional.extras`, by default the layer's own activation."""
        return functional.rms_norm(
            x,
            self.normalized_shape,
            registered(self, "weight"),
            self.eps,
            cast=self.cast,
            zero_centered=self.zero_centered,
            mask=mask,
            lengths=lengths,
            residual=residual,
            return_residual=return_residual,
            activation=activation or self.activation,
            gate=gate,
            skip=skip,
            gate_activation=gate_activation,
            gate_first=gate_first,
        )
