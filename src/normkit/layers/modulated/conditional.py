"""Conditional batch normalization: scale and shift come from a class, or from features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from normkit.errors import ArgumentError, DtypeError, ShapeError
from normkit.layers.base.checks import check_channels, check_rank, named
from normkit.layers.base.layer import Layer, check_count, check_eps
from normkit.layers.batch.norm import BatchNorm2d
from normkit.layers.modulated.base import modulated, one_plus


class ConditionalBatchNorm2d(Layer):
    """Normalize each channel of (N, C, H, W) over batch and positions; a condition gives scale and shift.

    ``y = (x - mean) / sqrt(var + eps) * (1 + scale) + shift``, where scale and shift are those of the sample's class,
    or are computed from its features by a linear layer. Both start at 0. Mean and variance are as in `BatchNorm2d`.

    Args:
        num_features: number of channels C.
        num_classes: number of classes, for a condition (N,) of whole numbers.
        cond_features: number of features, for a condition (N, cond_features). One of the two is given.
        eps: added to the variance, in units of the input squared.
        momentum: share of the new batch in the running statistics; None for the average over all batches.
        track_running_stats: whether there are running statistics; without them the batch's are always used.
        device, dtype: of parameters and statistics.

    Returns:
        From ``forward``, for x (N, C, H, W) and a condition: a tensor with the shape, dtype and memory layout of x.

    Raises:
        ArgumentError: both or none of num_classes and cond_features, a size below 1, eps below 0.
        ShapeError: from ``forward``, naming the layer: another shape of the input or of the condition.
        DtypeError: from ``forward``: classes that are not whole numbers.

    Example:
        >>> import torch, normkit
        >>> layer = normkit.ConditionalBatchNorm2d(16, num_classes=10)
        >>> layer(torch.randn(4, 16, 8, 8), torch.tensor([3, 1, 4, 1])).shape
        torch.Size([4, 16, 8, 8])

    Source: de Vries et al. 2017, Modulating early visual processing by language, arXiv:1707.00683.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int | None = None,
        cond_features: int | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_count(self, "num_features", num_features)
        if (num_classes is None) == (cond_features is None):
            raise ArgumentError(
                f"ConditionalBatchNorm2d needs num_classes or cond_features, got {num_classes} and {cond_features}: "
                "give the one that the condition has"
            )
        check_count(self, "num_classes" if cond_features is None else "cond_features", num_classes or cond_features)
        check_eps(self, eps)
        self._accept(activation=None)
        super().__init__()
        self.num_features = num_features
        self.num_classes = num_classes
        self.cond_features = cond_features
        if num_classes is not None:
            self.embedding = nn.Embedding(num_classes, 2 * num_features, device=device, dtype=dtype)
        else:
            self.linear = nn.Linear(cond_features or 1, 2 * num_features, device=device, dtype=dtype)
        self.norm = BatchNorm2d(num_features, eps, momentum, False, track_running_stats, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale and shift 0 for every condition, which is batch norm without weight and bias."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @named
    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Normalize, scale and shift; training updates the running statistics."""
        check_rank(x, BatchNorm2d.layouts)
        check_channels(x, 1, self.num_features)
        self._check(condition, x.shape[0])
        made = self.linear(condition) if self.num_classes is None else self.embedding(condition)
        scale, shift = made[:, :, None, None].chunk(2, dim=1)
        return modulated(self.norm, x, one_plus(scale, x), shift)

    def _check(self, condition: Tensor, samples: int) -> None:
        wanted: tuple[int | None, ...] = (samples, self.cond_features)
        remedy = "give the features of each sample"
        if self.num_classes is not None:
            wanted, remedy = (samples,), "give the number of the class of each sample, no one-hot vector"
            if condition.is_floating_point() or condition.dtype is torch.bool:
                raise DtypeError(f"classes must be whole numbers, got {condition.dtype}: convert them with .long()")
        if tuple(condition.shape) != wanted:
            raise ShapeError(f"the condition must have shape {wanted}, got {tuple(condition.shape)}: {remedy}")
        if self.num_classes is not None:
            self._check_classes(condition, self.num_classes)

    def _check_classes(self, condition: Tensor, classes: int) -> None:
        # On a GPU, and in a graph, nobody waits for values.
        if not condition.is_cpu or is_compiling() or not condition.numel():
            return
        low, high = (int(t) for t in condition.aminmax())
        if low < 0 or high >= classes:
            raise ArgumentError(
                f"classes must lie below num_classes={classes}, got {low} to {high}: make the layer for more classes"
            )

    def extra_repr(self) -> str:
        return f"{self.num_features}, num_classes={self.num_classes}, cond_features={self.cond_features}"
