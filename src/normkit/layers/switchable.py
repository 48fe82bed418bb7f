"""Switchable normalization as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, overload

import torch
from torch import Tensor, nn

from normkit import functional
from normkit.functional.extras import Fusions, Output
from normkit.layers.base.checks import named
from normkit.layers.base.layer import registered
from normkit.layers.base.tracked import Tracked, share_of


class SwitchableNorm(Tracked):
    """Normalize (N, C, positions ...) by a learned mixture of the moments of instance, layer and batch norm.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``; mean and variance are mixed from those of the sample and
    channel, of the sample, and of the channel over the batch, with the shares ``softmax(mean_weight)`` and
    ``softmax(var_weight)``. In evaluation the running statistics take the place of the batch's; they are updated as
    those of `BatchNorm1d`.

    Args:
        num_features: number of channels C.
        eps: added to the variance, in units of the input squared.
        momentum: share of the new batch in the running statistics; None for the average over all batches.
        affine: whether there are weight and bias.
        device, dtype: of parameters and statistics.
        bias: whether there is a bias as well as a weight.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``: a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: num_features below 1, eps below 0.
        ShapeError: from ``forward``, naming the layer: a single position, or another number of channels.

    Example:
        >>> import torch, normkit
        >>> layer = normkit.SwitchableNorm(16)
        >>> layer(torch.randn(2, 16, 8, 8)).shape, layer.mean_weight.softmax(0)[:2]
        (torch.Size([2, 16, 8, 8]), tensor([0.3333, 0.3333], grad_fn=<SliceBackward0>))

    Source: Luo et al. 2018, arXiv:1806.10779.
    """

    running_mean: Tensor
    running_var: Tensor
    mean_weight: nn.Parameter
    var_weight: nn.Parameter

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        shapes = {"running_mean": (num_features,), "running_var": (num_features,)}
        self._make(num_features, eps, momentum, affine, bias, device, dtype, activation, shapes)
        self.mean_weight = nn.Parameter(torch.empty(3, device=device, dtype=dtype))
        self.var_weight = nn.Parameter(torch.empty(3, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, equal shares of the three parts, statistics as before the first batch."""
        super().reset_parameters()
        nn.init.ones_(self.mean_weight)
        nn.init.ones_(self.var_weight)

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1, no batch counted."""
        super().reset_running_stats()
        self.running_mean.zero_()
        self.running_var.fill_(1)

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
        """Normalize; training updates the running statistics; keywords as in `normkit.functional.extras.Extras`."""
        self._check(input)
        counter, momentum = share_of(self)
        y = functional.switchable_norm(
            input,
            self.running_mean,
            self.running_var,
            self.mean_weight,
            self.var_weight,
            registered(self, "weight"),
            registered(self, "bias"),
            self.training,
            momentum,
            self.eps,
            mask=mask,
            lengths=lengths,
            residual=residual,
            return_residual=return_residual,
            activation=activation or self.activation,
        )
        self._count(counter, input)
        return y

    def extra_repr(self) -> str:
        return self._described()
