"""Ghost batch norm: a large batch normalized in chunks, as if each were a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack, overload

import torch
from torch import Tensor
from torch.nn.modules import batchnorm

from normkit.errors import ArgumentError, whole_number
from normkit.functional.batch.ghost import ghost_batch_norm
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


class _GhostBatchNorm(Layer, TakesBias, batchnorm._BatchNorm):
    """Abstract: batch norm's state; forward differs in training alone."""

    layouts: ClassVar[dict[int, str]]

    def __init__(
        self,
        num_features: int,
        virtual_batch_size: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        check_count(self, "num_features", num_features)
        check_eps(self, eps)
        if whole_number("virtual_batch_size", virtual_batch_size) < 1:
            raise ArgumentError(
                f"virtual_batch_size of {type(self).__name__} must be at least 1, got {virtual_batch_size}: "
                "give the number of samples in a chunk"
            )
        self._accept(activation=activation)
        make(self, batchnorm._BatchNorm, num_features, eps, momentum, affine, True, device, dtype, bias=bias)
        self.virtual_batch_size = virtual_batch_size

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
        running = self.running_mean, self.running_var
        y, new = ghost_batch_norm(
            input, *running, self.virtual_batch_size, self.weight, self.bias, momentum, self.eps, **fused
        )
        keep_statistics(self, input, counter, new)
        return y

    def extra_repr(self) -> str:
        described = super(Layer, self).extra_repr()  # type: ignore[no-untyped-call]
        return self._with_options(f"{described}, virtual_batch_size={self.virtual_batch_size}")


class GhostBatchNorm1d(_GhostBatchNorm):
    """Batch norm of (N, C) or (N, C, L) in training with the moments of every `virtual_batch_size` samples.

    The noise of small batches regularizes large ones. Chunks are taken in the batch's order; the last one holds the
    remaining samples, and a single remaining value joins the chunk before. The running statistics are updated once a
    step, towards the averages of the chunks' means and unbiased variances. Evaluation and state dict are batch norm's.

    Args:
        num_features: number of channels C.
        virtual_batch_size: samples in a chunk.
        eps: added to the variance, in units of the input squared.
        momentum: share of the new batch in the running statistics; None for the average over all batches.
        affine: whether there are weight and bias.
        device, dtype: of parameters and statistics.
        bias: whether there is a bias as well as a weight.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``: a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: num_features or virtual_batch_size below 1, eps below 0.
        ShapeError: from ``forward``, naming the layer: a wrong number of dimensions or channels, or a single value per
            channel in a chunk.

    Example:
        >>> import torch, normkit
        >>> layer, plain = normkit.GhostBatchNorm1d(3, virtual_batch_size=4), normkit.BatchNorm1d(3)
        >>> x = torch.randn(10, 3)
        >>> torch.allclose(layer(x)[4:8], plain(x[4:8]), atol=1e-6)
        True

    Source: Hoffer, Hubara & Soudry 2017, arXiv:1705.08741.
    """

    layouts: ClassVar = BatchNorm1d.layouts


class GhostBatchNorm2d(_GhostBatchNorm):
    """Ghost batch norm of (N, C, H, W) over chunks and positions; otherwise as `GhostBatchNorm1d`."""

    layouts: ClassVar = BatchNorm2d.layouts


class GhostBatchNorm3d(_GhostBatchNorm):
    """Ghost batch norm of (N, C, D, H, W) over chunks and positions; otherwise as `GhostBatchNorm1d`."""

    layouts: ClassVar = BatchNorm3d.layouts
