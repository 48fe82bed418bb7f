"""Batch renormalization: batch norm corrected towards its running statistics while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack, overload

import torch
from torch import Tensor
from torch.nn.modules import batchnorm

from normkit.functional.batch.renorm import batch_renorm, check_limits
from normkit.functional.extras import Extras, Fusions, Output
from normkit.layers.base.checks import named
from normkit.layers.base.layer import Layer, check_count, check_eps
from normkit.layers.base.tracked import share_of
from normkit.layers.base.versions import TakesBias, make
from normkit.layers.batch.norm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    check_input,
    evaluated,
    keep_statistics,
)


class _BatchRenorm(Layer, TakesBias, batchnorm._BatchNorm):
    """Abstract: batch norm's state; forward differs in training alone."""

    layouts: ClassVar[dict[int, str]]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        r_max: float = 3.0,
        d_max: float = 5.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        check_count(self, "num_features", num_features)
        check_eps(self, eps)
        check_limits(type(self).__name__, r_max, d_max)
        self._accept(activation=activation)
        make(self, batchnorm._BatchNorm, num_features, eps, momentum, affine, True, device, dtype, bias=bias)
        self.r_max = r_max
        self.d_max = d_max

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
        check_input(self, input)
        fused: Extras = {
            "mask": mask,
            "lengths": lengths,
            "residual": residual,
            "return_residual": return_residual,
            "activation": activation or self.activation,
        }
        if not self.training:
            return evaluated(self, input, **fused)
        counter, momentum = share_of(self)
        assert self.running_mean is not None
        assert self.running_var is not None
        running = self.running_mean, self.running_var
        limits = self.r_max, self.d_max
        y, new = batch_renorm(input, *running, self.weight, self.bias, momentum, self.eps, *limits, **fused)
        keep_statistics(self, input, counter, new)
        return y

    def extra_repr(self) -> str:
        described = super(Layer, self).extra_repr()  # type: ignore[no-untyped-call]
        return self._with_options(f"{described}, r_max={self.r_max}, d_max={self.d_max}")


class BatchRenorm1d(_BatchRenorm):
    """Batch norm of (N, C) or (N, C, L) for small or unlike batches: training as evaluation will see it.

    ``y = ((x - mean) / s * r + d) * weight + bias``, where r and d take the batch's deviation and mean to the running
    ones, within limits, and are constants for the gradient. At ``r_max=1, d_max=0`` this is batch norm; set the two
    attributes as training goes on: the paper keeps 1 and 0 for 5,000 steps, and reaches 3 after 40,000 and 5 after
    25,000. Until running statistics are close to the data's, wide limits are unstable. Evaluation and state
    dict are batch norm's.

    Args:
        num_features: number of channels C.
        eps: added to the variance, in units of the input squared.
        momentum: share of the new batch in the running statistics; None for the average over all batches.
        affine: whether there are weight and bias.
        r_max: largest correction of the scale, at least 1.
        d_max: largest correction of the mean, in standard deviations, at least 0.
        device, dtype: of parameters and statistics.
        bias: whether there is a bias as well as a weight.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``: a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: num_features below 1, eps below 0, r_max below 1, d_max below 0.
        ShapeError: from ``forward``, naming the layer: a wrong number of dimensions or channels, or a single value per
            channel in training.

    Example:
        >>> import torch, normkit
        >>> layer = normkit.BatchRenorm1d(3, r_max=1.0, d_max=0.0)
        >>> x = torch.randn(8, 3)
        >>> torch.allclose(layer(x), normkit.BatchNorm1d(3)(x), atol=1e-6)
        True
        >>> layer.r_max, layer.d_max = 3.0, 5.0

    Source: Ioffe 2017, arXiv:1702.03275.
    """

    layouts: ClassVar = BatchNorm1d.layouts


class BatchRenorm2d(_BatchRenorm):
    """Batch renormalization of (N, C, H, W) over batch and positions; otherwise as `BatchRenorm1d`."""

    layouts: ClassVar = BatchNorm2d.layouts


class BatchRenorm3d(_BatchRenorm):
    """Batch renormalization of (N, C, D, H, W) over batch and positions; otherwise as `BatchRenorm1d`."""

    layouts: ClassVar = BatchNorm3d.layouts
