"""The parameters that the bounded functions share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normkit.errors import ArgumentError
from normkit.layers.base.checks import check_channels
from normkit.layers.base.layer import Layer, Shape, checked_shape


class Bounded(Layer):
    """Abstract: one slope, weight and bias over the features."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    alpha: nn.Parameter

    def _make(
        self,
        normalized_shape: Shape,
        alpha: float,
        channels_last: bool,
        affine: bool,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        shape = checked_shape(self, normalized_shape)
        if not channels_last and len(shape) != 1:
            raise ArgumentError(
                f"normalized_shape of {type(self).__name__} must be one number without channels_last, got {shape}: "
                "give the number of channels"
            )
        super().__init__()
        self.normalized_shape = shape
        self.alpha_init_value = alpha
        self.channels_last = channels_last
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        for name, there in {"weight": affine, "bias": affine and bias}.items():
            new = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if there else None
            self.register_parameter(name, new)

    def reset_parameters(self) -> None:
        """The slope as the layer was made with, weight 1, bias 0."""
        nn.init.constant_(self.alpha, self.alpha_init_value)
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _check(self, input: Tensor) -> None:
        if not self.channels_last and input.dim() > 1:
            check_channels(input, 1, self.normalized_shape[0])
