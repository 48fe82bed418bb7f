"""Iterative normalization as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, overload

import torch
from torch import Tensor

from normkit import functional
from normkit.functional.extras import Fusions, Output
from normkit.functional.iter_norm import check_groups
from normkit.layers.base.checks import named
from normkit.layers.base.layer import check_count, registered
from normkit.layers.base.tracked import Tracked, share_of


class IterNorm(Tracked):
    """Decorrelate the channels of (N, C) or (N, C, ...) over the batch: each group gets covariance near the identity.

    ``y = whitening @ (x - mean) * weight + bias``, where the whitening matrix comes from Newton's iterations for the
    inverse square root of the covariance matrix. In evaluation the running mean and the running whitening matrix take
    their place. The statistics of a group of many channels need many values: keep a group narrower than
    the values of a channel.

    Args:
        num_features: number of channels C.
        eps: added to the variances, in units of the input squared.
        momentum: share of the new batch in the running statistics; None for the average over all batches.
        affine: whether there are weight and bias.
        num_groups: groups of neighbouring channels, each decorrelated by itself.
        iterations: of Newton's method; more come nearer to the identity.
        device, dtype: of parameters and statistics.
        bias: whether there is a bias as well as a weight.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``: a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: num_features below 1, eps or iterations below 0, groups that do not divide the channels.
        ShapeError: from ``forward``, naming the layer: a single value per channel in training, or another number of
            channels.

    Example:
        >>> import torch, normkit
        >>> layer = normkit.IterNorm(16, num_groups=4)
        >>> layer(torch.randn(32, 16, 8, 8)).shape, layer.running_whitening.shape
        (torch.Size([32, 16, 8, 8]), torch.Size([4, 4, 4]))

    Source: Huang et al. 2019, arXiv:1904.03441.
    """

    running_mean: Tensor
    running_whitening: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        num_groups: int = 1,
        iterations: int = 5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        check_count(self, "num_features", num_features)
        check_groups("IterNorm", num_features, num_groups, iterations)
        width = num_features // num_groups
        shapes = {"running_mean": (num_features,), "running_whitening": (num_groups, width, width)}
        self._make(num_features, eps, momentum, affine, bias, device, dtype, activation, shapes)
        self.num_groups = num_groups
        self.iterations = iterations
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Mean 0, the identity as whitening matrix, no batch counted."""
        super().reset_running_stats()
        self.running_mean.zero_()
        self.running_whitening.zero_()
        self.running_whitening.diagonal(dim1=1, dim2=2).fill_(1)

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
        y = functional.iter_norm(
            input,
            self.running_mean,
            self.running_whitening,
            registered(self, "weight"),
            registered(self, "bias"),
            self.training,
            self.num_groups,
            self.iterations,
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
        return self._described(f", num_groups={self.num_groups}, iterations={self.iterations}")
