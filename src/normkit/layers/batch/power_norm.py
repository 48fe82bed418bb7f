"""Power normalization as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, overload

import torch
from torch import Tensor

from normkit import functional
from normkit.errors import ArgumentError, whole_number
from normkit.functional.extras import Fusions, Output
from normkit.kernels.context import is_watched
from normkit.layers.base.checks import named
from normkit.layers.base.layer import registered
from normkit.layers.base.tracked import Tracked, share_of


class PowerNorm(Tracked):
    """Divide each channel of (N, C) or (N, C, ...) by its running quadratic mean; no mean is subtracted.

    ``y = x / sqrt(phi + eps) * weight + bias``, where phi is the running mean of ``x ** 2`` over batch and positions,
    in training that of before the batch. For the first `warmup_iters` batches it is the batch's own, with the exact
    gradient; after them the gradient of phi is approximated by a running statistic, which each backward pass updates.
    The paper's implementation first divides each token by the root mean square of its features: put
    `RMSNorm` without weight before this layer. Give tokens as (N, C, T).

    Args:
        num_features: number of channels C.
        eps: added to phi, in units of the input squared.
        momentum: share of the new batch in the running statistics; None for the average over all batches.
        affine: whether there are weight and bias.
        warmup_iters: number of batches before the running quadratic mean is used in training.
        device, dtype: of parameters and statistics.
        bias: whether there is a bias as well as a weight.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``: a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: num_features below 1, eps or warmup_iters below 0.
        ShapeError: from ``forward``, naming the layer: a single value per channel in the warm-up, or another number
            of channels.

    Example:
        >>> import torch, normkit
        >>> layer = normkit.PowerNorm(16, warmup_iters=0)
        >>> x = torch.randn(8, 16)
        >>> torch.allclose(layer(x), x, atol=1e-4), layer.num_batches_tracked  # phi is 1 before the first batch
        (True, tensor(1))

    Source: Shen et al. 2020, arXiv:2003.07845.
    """

    running_phi: Tensor
    running_gradient: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        warmup_iters: int = 10000,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        if whole_number("warmup_iters of PowerNorm", warmup_iters) < 0:
            raise ArgumentError(f"warmup_iters of PowerNorm must not be negative, got {warmup_iters}: 0 is no warm-up")
        shapes = {"running_phi": (num_features,), "running_gradient": (num_features,)}
        self._make(num_features, eps, momentum, affine, bias, device, dtype, activation, shapes)
        self.warmup_iters = warmup_iters
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Quadratic mean 1, its gradient 0, no batch counted: the warm-up begins again."""
        super().reset_running_stats()
        self.running_phi.fill_(1)
        self.running_gradient.zero_()

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
        """Normalize; training updates the statistics; keywords as in `normkit.functional.extras.Extras`."""
        self._check(input)
        counter, momentum = share_of(self)
        warmup: bool | Tensor = False
        if counter is not None:
            warmup = counter < self.warmup_iters
            # Read where that neither waits for a GPU nor ends a graph.
            warmup = bool(warmup) if warmup.is_cpu and not is_watched(warmup) else warmup
        y = functional.power_norm(
            input,
            self.running_phi,
            self.running_gradient,
            registered(self, "weight"),
            registered(self, "bias"),
            self.training,
            warmup,
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
        return self._described(f", warmup_iters={self.warmup_iters}")
