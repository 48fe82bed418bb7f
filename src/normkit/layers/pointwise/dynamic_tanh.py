"""Dynamic tanh as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, overload

import torch
from torch import Tensor

from normkit import functional
from normkit.functional.extras import Fusions, Output
from normkit.layers.base.checks import named
from normkit.layers.base.layer import Shape, registered
from normkit.layers.pointwise.bounded import Bounded


class DynamicTanh(Bounded):
    """Bound each value by a hyperbolic tangent of learned slope, in place of a norm.

    ``y = tanh(alpha * x) * weight + bias``. There are no statistics: each value is computed by itself,
    the same in training and evaluation.

    Args:
        normalized_shape: the sizes of the last dimensions; one number for the last alone.
        channels_last: whether the features are the last dimensions; else they are dimension 1.
        alpha_init_value: the first slope.
        elementwise_affine: whether there are weight and bias, of shape `normalized_shape`.
        bias: whether there is a bias as well as a weight.
        device, dtype: of the parameters; float32 is possible with half-precision input.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``: a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: a size below 1, more than one without `channels_last`.
        ShapeError: from ``forward``, naming the layer: the input has other features.

    Example:
        >>> import torch, normkit
        >>> normkit.DynamicTanh(3)(torch.tensor([[0.0, 1.0, 100.0]])).detach()
        tensor([[0.0000, 0.4621, 1.0000]])

    Source: Zhu et al. 2025, arXiv:2503.10622.
    """

    def __init__(
        self,
        normalized_shape: Shape,
        channels_last: bool = True,
        alpha_init_value: float = 0.5,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        self._accept(activation=activation)
        self._make(normalized_shape, alpha_init_value, channels_last, elementwise_affine, bias, device, dtype)
        self.reset_parameters()

    @overload
    def forward(self, input: Tensor, **fused: Unpack[Fusions]) -> Tensor: ...
    @overload
    def forward(self, input: Tensor, *, return_residual: bool, **fused: Unpack[Fusions]) -> Output: ...
    @named
    def forward(
        self,
        input: Tensor,
        mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        residual: Tensor | None = None,
        return_residual: bool = False,
        activation: str | None = None,
    ) -> Output:
        """Bound each value; keywords as in `normkit.functional.extras.Extras`, by default with the own activation."""
        self._check(input)
        return functional.dynamic_tanh(
            input,
            self.alpha,
            registered(self, "weight"),
            registered(self, "bias"),
            self.channels_last,
            mask=mask,
            lengths=lengths,
            residual=residual,
            return_residual=return_residual,
            activation=activation or self.activation,
        )

    def extra_repr(self) -> str:
        affine, bias = self.weight is not None, self.bias is not None
        return self._with_options(
            f"{self.normalized_shape}, channels_last={self.channels_last}, "
            f"alpha_init_value={self.alpha_init_value}, elementwise_affine={affine}, bias={bias}"
        )
