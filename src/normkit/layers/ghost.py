"""Ghost batch norm: a large batch normalized in chunks, as if each were a batch."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor
from torch.nn.modules import batchnorm

from normkit.errors import ArgumentError, whole_number
from normkit.functional.batch_update import ghost_batch_norm
from normkit.functional.extras import Extras, Output
from normkit.layers._checks import checked, with_activation
from normkit.layers._versions import TakesBias
from normkit.layers.batch import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    check_input,
    evaluated,
    keep_statistics,
    share_of,
)


class _GhostBatchNorm(TakesBias, batchnorm._BatchNorm):
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
    ) -> None:
        if whole_number("virtual_batch_size", virtual_batch_size) < 1:
            raise ArgumentError(
                f"virtual_batch_size of {type(self).__name__} must be at least 1, got {virtual_batch_size}: "
                "give the number of samples in a chunk"
            )
        super().__init__(num_features, eps, momentum, affine, True, device, dtype, bias=bias)
        self.virtual_batch_size = virtual_batch_size

    def forward(self, input: Tensor, **extras: Unpack[Extras]) -> Output:
        """Normalize, and update the running statistics if training; `extras` as in `normkit.functional`."""
        check_input(self, input)
        extras = with_activation(self, extras)
        if not self.training:
            return evaluated(self, input, extras)
        counter, momentum = share_of(self)
        running = self.running_mean, self.running_var
        y, new = ghost_batch_norm(
            input, *running, self.virtual_batch_size, self.weight, self.bias, momentum, self.eps, **extras
        )
        keep_statistics(self, input, counter, new)
        return y

    def extra_repr(self) -> str:
        described: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{described}, virtual_batch_size={self.virtual_batch_size}"


@checked
class GhostBatchNorm1d(_GhostBatchNorm):
    """Batch norm of (N, C) or (N, C, L) in training with the moments of every `virtual_batch_size` samples.

    The noise of small batches regularizes large ones. Chunks are taken in the batch's order; the last one
    holds what is left, and a single value that is left joins the chunk before. The running statistics move once a step,
    towards the averages of the chunks' means and unbiased variances. Evaluation and state dict are batch norm's.

    Args:
        num_features: number of channels C.
        virtual_batch_size: samples in a chunk.
        eps: added to the variance, in units of the input squared.
        momentum: share of the new batch in the running statistics; None for the average over all batches.
        affine: whether there are weight and bias.
        device, dtype: of parameters and statistics.
        bias: whether there is a bias beside the weight.

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


@checked
class GhostBatchNorm2d(_GhostBatchNorm):
    """Ghost batch norm of (N, C, H, W) over chunks and positions; otherwise as `GhostBatchNorm1d`."""

    layouts: ClassVar = BatchNorm2d.layouts


@checked
class GhostBatchNorm3d(_GhostBatchNorm):
    """Ghost batch norm of (N, C, D, H, W) over chunks and positions; otherwise as `GhostBatchNorm1d`."""

    layouts: ClassVar = BatchNorm3d.layouts
