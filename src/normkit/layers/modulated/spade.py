"""Spatially adaptive normalization: scale and shift of each position come from a map of labels."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.errors import ArgumentError, DtypeError, ShapeError, nearest
from normkit.layers.base.checks import check_channels, check_rank, named
from normkit.layers.base.layer import Layer, check_count, check_eps
from normkit.layers.batch.norm import BatchNorm2d
from normkit.layers.batch.sync import SyncBatchNorm
from normkit.layers.instance import InstanceNorm2d
from normkit.layers.modulated.base import modulated, one_plus

LAYOUTS = {4: "(N, C, H, W)"}
NORMS: dict[str, type[nn.Module]] = {"batch": BatchNorm2d, "instance": InstanceNorm2d, "sync_batch": SyncBatchNorm}


class SPADE(Layer):
    """Normalize (N, C, H, W); convolutions of a map of labels give scale and shift of each element.

    ``y = (x - mean) / sqrt(var + eps) * (1 + scale) + shift``. The map is resized to x, by the nearest position; a
    convolution with relu and one more for each of scale and shift follow.

    Args:
        num_features: number of channels C.
        label_channels: number of channels of the map, such as the classes of a one-hot segmentation.
        hidden: number of channels between the convolutions.
        norm: ``"batch"``, ``"instance"`` or ``"sync_batch"``, without weight and bias.
        kernel_size: of all convolutions, odd.
        eps: added to the variance, in units of the input squared.
        device, dtype: of the parameters.

    Returns:
        From ``forward``, for x (N, C, H, W) and a map (N, label_channels, H', W'): a tensor with the shape, dtype and
        memory layout of x.

    Raises:
        ArgumentError: a size below 1, an even kernel_size, an unknown norm, eps below 0.
        ShapeError: from ``forward``, naming the layer: another rank or number of channels or samples.

    Example:
        >>> import torch, normkit
        >>> labels = torch.nn.functional.one_hot(torch.randint(5, (2, 32, 32)), 5).permute(0, 3, 1, 2).float()
        >>> normkit.SPADE(16, 5)(torch.randn(2, 16, 8, 8), labels).shape
        torch.Size([2, 16, 8, 8])

    Source: Park et al. 2019, arXiv:1903.07291; the names in its state are those of the paper's code.
    """

    def __init__(
        self,
        num_features: int,
        label_channels: int,
        hidden: int = 128,
        norm: Literal["batch", "instance", "sync_batch"] = "batch",
        kernel_size: int = 3,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = {"num_features": num_features, "label_channels": label_channels, "hidden": hidden}
        for name, size in (sizes | {"kernel_size": kernel_size}).items():
            check_count(self, name, size)
        if kernel_size % 2 == 0:
            raise ArgumentError(
                f"kernel_size of SPADE must be odd, got {kernel_size}: an even one moves the map; use 3"
            )
        if norm not in NORMS:
            known = ", ".join(map(repr, NORMS))
            raise ArgumentError(f"norm of SPADE must be one of {known}, got {norm!r}: {nearest(str(norm), NORMS)}")
        check_eps(self, eps)
        self._accept(activation=None)
        super().__init__()
        self.num_features = num_features
        self.label_channels = label_channels
        places: dict[str, Any] = {} if norm == "instance" else {"device": device, "dtype": dtype}
        self.param_free_norm = NORMS[norm](num_features, eps=eps, affine=False, **places)
        options: dict[str, Any] = {"padding": kernel_size // 2, "device": device, "dtype": dtype}
        first = nn.Conv2d(label_channels, hidden, kernel_size, **options)
        self.mlp_shared = nn.Sequential(first, nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, num_features, kernel_size, **options)
        self.mlp_beta = nn.Conv2d(hidden, num_features, kernel_size, **options)

    @named
    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        """Normalize, scale and shift."""
        for t, channels in ((x, self.num_features), (segmap, self.label_channels)):
            check_rank(t, LAYOUTS)
            check_channels(t, 1, channels)
        if not segmap.is_floating_point():
            raise DtypeError(
                f"the map of SPADE must be floating point, one-hot for labels, got {segmap.dtype}: convert it, as with "
                "torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()"
            )
        if segmap.shape[0] != x.shape[0]:
            raise ShapeError(
                f"there must be a map for each of the {x.shape[0]} samples, got {segmap.shape[0]}: "
                "give maps and input of one batch"
            )
        hidden = self.mlp_shared(F.interpolate(segmap, size=x.shape[2:], mode="nearest"))
        return modulated(self.param_free_norm, x, one_plus(self.mlp_gamma(hidden), x), self.mlp_beta(hidden))

    def extra_repr(self) -> str:
        return f"{self.num_features}, label_channels={self.label_channels}"
