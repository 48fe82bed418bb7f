"""Scale normalization as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, overload

import torch
from torch import Tensor, nn

from normkit import functional
from normkit.errors import ArgumentError, ShapeError
from normkit.functional.extras import Fusions, Output
from normkit.layers.base.checks import has_channels, named
from normkit.layers.base.layer import Layer, check_count, registered


class ScaleNorm(Layer):
    """Divide the last dimension by its Euclidean length, and multiply it by one learned number.

    ``y = x / max(||x||, eps) * weight``; the same in training and evaluation.

    Args:
        num_features: size of the last dimension; the first weight is its square root.
        eps: the smallest length that is divided by, in units of the input; above 0.
        elementwise_affine: whether there is a weight, of shape (1,); without it, it counts as 1.
        device, dtype: of the parameters; float32 is possible with half-precision input.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``, for (..., num_features): a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: num_features below 1, eps not above 0.
        ShapeError: from ``forward``, naming the layer: another last dimension.

    Example:
        >>> import torch, normkit
        >>> normkit.ScaleNorm(4)(torch.tensor([[2.0, 2.0, 2.0, 2.0]])).detach()
        tensor([[1., 1., 1., 1.]])

    Source: Nguyen & Salazar 2019, arXiv:1910.05895.
    """

    weight: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        check_count(self, "num_features", num_features)
        if not eps > 0:
            raise ArgumentError(f"eps of {type(self).__name__} must be above 0, got {eps}: use 1e-5")
        self._accept(activation=activation)
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        new = nn.Parameter(torch.empty(1, device=device, dtype=dtype)) if elementwise_affine else None
        self.register_parameter("weight", new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The weight as the square root of the number of features, so that values have a mean square of 1."""
        if self.weight is not None:
            nn.init.constant_(self.weight, self.num_features**0.5)

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
        """Normalize; keywords as in `normkit.functional.extras.Extras`, by default the layer's own activation."""
        if input.dim() == 0 or not has_channels(input, -1, self.num_features):
            raise ShapeError(
                f"the last dimension of the input must be the layer's {self.num_features} features, got shape "
                f"{tuple(input.shape)}: make the layer for that many, or permute the input"
            )
        return functional.scale_norm(
            input,
            registered(self, "weight"),
            self.eps,
            mask=mask,
            lengths=lengths,
            residual=residual,
            return_residual=return_residual,
            activation=activation or self.activation,
        )

    def extra_repr(self) -> str:
        affine = self.weight is not None
        return self._with_options(f"{self.num_features}, eps={self.eps}, elementwise_affine={affine}")
