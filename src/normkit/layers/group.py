"""Group normalization: a group of channels of one sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, overload

import torch
from torch import Tensor, nn

from normkit import functional
from normkit.functional.extras import Epilogues, Output
from normkit.layers.base.checks import check_channels, named
from normkit.layers.base.layer import Layer, check_count, check_eps, check_groups, registered
from normkit.layers.base.versions import TakesBias, make


class GroupNorm(Layer, TakesBias, nn.GroupNorm):
    """Normalize groups of channels of each sample.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and variance over the channels of a group and
    all positions; the same in training and evaluation.

    Args:
        num_groups: must divide `num_channels`.
        num_channels: number of channels C.
        eps: added to the variance, in units of the input squared.
        affine: whether there are weight and bias, of shape (C,).
        device, dtype: of the parameters; float32 is possible with half-precision input.
        bias: whether there is a bias as well as a weight.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

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

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        check_count(self, "num_groups", num_groups)
        check_count(self, "num_channels", num_channels)
        check_eps(self, eps)
        check_groups(self, num_groups, num_channels)
        self._accept(activation=activation)
        make(self, nn.GroupNorm, num_groups, num_channels, eps, affine, device, dtype, bias=bias)

    @overload
    def forward(self, input: Tensor, **fused: Unpack[Epilogues]) -> Tensor: ...
    @overload
    def forward(self, input: Tensor, *, return_residual: bool, **fused: Unpack[Epilogues]) -> Output: ...
    @named
    def forward(
        self,
        input: Tensor,
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
        if input.dim() > 1:
            check_channels(input, 1, self.num_channels)
        return functional.group_norm(
            input,
            self.num_groups,
            registered(self, "weight"),
            registered(self, "bias"),
            self.eps,
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
