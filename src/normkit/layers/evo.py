"""EvoNorm-B0 and EvoNorm-S0 as layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, overload

import torch
from torch import Tensor, nn

from normkit import functional
from normkit.errors import ArgumentError
from normkit.functional.extras import Fusions, Output
from normkit.layers.base.checks import check_channels, check_rank, named
from normkit.layers.base.layer import Layer, check_count, check_eps, check_groups, registered

LAYOUTS = {4: "(N, C, H, W)"}


class _EvoNorm(Layer):
    """Abstract: weight, bias and the slope v of each channel."""

    weight: nn.Parameter
    bias: nn.Parameter
    v: nn.Parameter

    def _make(
        self, num_features: int, eps: float, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        for name in ("weight", "bias", "v"):
            setattr(self, name, nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)))

    def reset_parameters(self) -> None:
        """Weight and v 1, bias 0."""
        for name, own in self.named_parameters():
            nn.init.constant_(own, float(name != "bias"))

    def _check(self, input: Tensor) -> None:
        check_rank(input, LAYOUTS)
        check_channels(input, 1, self.num_features)


class EvoNorm2dB0(_EvoNorm):
    """Normalize and activate images by the batch's deviation, or by that of each image where that is larger.

    ``y = x / max(sqrt(batch_var + eps), v * x + sqrt(var + eps)) * weight + bias``: batch_var of a channel over batch
    and positions, var of a channel of one image. It takes the place of a norm and of the activation after it. In
    training batch_var is the batch's and updates the running variance:
    ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance. In evaluation the running
    variance takes its place. A channel keeps its variance where the new one would not be finite.

    Args:
        num_features: number of channels C.
        eps: added to both variances, in units of the input squared.
        momentum: share of the new batch in the running variance.
        device, dtype: of the parameters; float32 is possible with half-precision input.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``, for (N, C, H, W): a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: num_features below 1, eps below 0.
        ShapeError: from ``forward``, naming the layer: another rank or number of channels, or a single value per
            channel in training. The running variance is unchanged then.

    Example:
        >>> import torch, normkit
        >>> layer = normkit.EvoNorm2dB0(16)
        >>> layer(torch.randn(2, 16, 8, 8)).shape, bool((layer.running_var != 1).all())
        (torch.Size([2, 16, 8, 8]), True)

    Source: Liu et al. 2020, arXiv:2004.02967.
    """

    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        check_count(self, "num_features", num_features)
        check_eps(self, eps)
        self._accept(activation=activation)
        self._make(num_features, eps, device, dtype)
        if not isinstance(momentum, int | float):
            raise ArgumentError(f"momentum of {type(self).__name__} must be a number, got {momentum!r}: use 0.1")
        self.momentum = momentum
        self.register_buffer("running_var", torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """The running variance is 1."""
        self.running_var.fill_(1)

    def reset_parameters(self) -> None:
        """Weight, v and running variance 1, bias 0."""
        self.reset_running_stats()
        super().reset_parameters()

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
        self._check(input)
        return functional.evo_norm_b0(
            input,
            registered(self, "running_var"),
            registered(self, "v"),
            registered(self, "weight"),
            registered(self, "bias"),
            self.training,
            self.momentum,
            self.eps,
            mask=mask,
            lengths=lengths,
            residual=residual,
            return_residual=return_residual,
            activation=activation or self.activation,
        )

    def extra_repr(self) -> str:
        return self._with_options(f"{self.num_features}, eps={self.eps}, momentum={self.momentum}")


class EvoNorm2dS0(_EvoNorm):
    """Normalize and activate images: a swish of learned slope over the deviation of a group of channels of one image.

    ``y = x * sigmoid(v * x) / sqrt(var + eps) * weight + bias``. It takes the place of a norm and of the activation
    after it, and does not depend on the batch.

    Args:
        num_features: number of channels C.
        num_groups: number of groups; it divides C.
        eps: added to the variance, in units of the input squared.
        device, dtype: of the parameters; float32 is possible with half-precision input.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``, for (N, C, H, W): a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: groups that do not divide the channels, num_features below 1, eps below 0.
        ShapeError: from ``forward``, naming the layer: another rank or number of channels, or one value per group.

    Example:
        >>> import torch, normkit
        >>> normkit.EvoNorm2dS0(16, 4)(torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 16, 8, 8])

    Source: Liu et al. 2020, arXiv:2004.02967.
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        check_count(self, "num_features", num_features)
        check_count(self, "num_groups", num_groups)
        check_eps(self, eps)
        check_groups(self, num_groups, num_features)
        self._accept(activation=activation)
        self._make(num_features, eps, device, dtype)
        self.num_groups = num_groups
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
        """Normalize; keywords as in `normkit.functional.extras.Extras`, by default the layer's own activation."""
        self._check(input)
        return functional.evo_norm_s0(
            input,
            self.num_groups,
            registered(self, "v"),
            registered(self, "weight"),
            registered(self, "bias"),
            self.eps,
            mask=mask,
            lengths=lengths,
            residual=residual,
            return_residual=return_residual,
            activation=activation or self.activation,
        )

    def extra_repr(self) -> str:
        return self._with_options(f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}")
