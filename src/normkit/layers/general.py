"""Any region as a layer: the pattern is read when the layer is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack, overload

import torch
from torch import Tensor, nn

from normkit import functional
from normkit.errors import ArgumentError
from normkit.functional.extras import Epilogues, Output
from normkit.layers.base.checks import named
from normkit.layers.base.layer import Layer, check_count, check_eps, registered
from normkit.pattern import Region, bound


class Norm(Layer):
    """Normalize over the region that a pattern puts in brackets.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and (biased) variance over the bracketed axes;
    with ``center=False`` the mean is taken as 0. The statistics are the input's own in training and
    evaluation alike.

    Args:
        pattern: for instance ``"b (g [c]) [...]"``; see `normkit.pattern`.
        num_features: the size of the channel dimension, the one with an axis whose name starts with ``c``; a
            sequence of sizes if there are several. None only without weight and bias.
        num_groups: the size of the axis ``g``, where the pattern has one.
        eps: added to the variance, in units of the input squared.
        affine: whether there are weight and bias, one value for each feature.
        bias: whether there is a bias as well as a weight.
        center: subtract the mean.
        device, dtype: of the parameters; float32 is possible with half-precision input.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``: a tensor with the input's shape, dtype and memory layout.

    Raises:
        PatternError: the pattern cannot be read; with a caret under the place.
        ArgumentError: an axis whose size is nowhere given, no `num_features` though affine, eps below 0.
        ShapeError: groups that do not divide the features; from ``forward``, naming the layer, an input that
            does not fit the pattern.

    Example:
        >>> import torch, normkit
        >>> layer = normkit.Norm("b (g [c]) [...]", num_features=64, num_groups=8)
        >>> x = torch.randn(2, 64, 7, 7)
        >>> torch.allclose(layer(x), normkit.GroupNorm(8, 64)(x))
        True

    Source: Huang et al. 2020, Normalization Techniques in Training DNNs, arXiv:2009.12836, for the regions.
    """

    def __init__(
        self,
        pattern: str,
        num_features: int | Sequence[int] | None = None,
        *,
        num_groups: int | None = None,
        eps: float = 1e-5,
        affine: bool = True,
        bias: bool = True,
        center: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        activation: str | None = None,
    ) -> None:
        given = () if num_features is None else num_features
        sizes = tuple(given) if isinstance(given, Sequence) else (given,)
        for size in sizes:
            check_count(self, "num_features", size)
        if num_groups is not None:
            check_count(self, "num_groups", num_groups)
        check_eps(self, eps)
        self._accept(activation=activation)
        super().__init__()
        region = bound(pattern, {} if num_groups is None else {"g": num_groups})
        if affine and not sizes:
            raise ArgumentError(
                f"Norm({pattern!r}) needs num_features for its weight, got {num_features}: "
                "give the number of channels, or affine=False"
            )
        self.pattern = pattern
        self.num_features = num_features
        self.num_groups = num_groups
        self.eps = eps
        self.affine = affine
        self.center = center
        # With every size written into it, the pattern itself refuses an input of another width.
        self._region = _sized(region, sizes)
        self.weight = nn.Parameter(torch.empty(sizes, device=device, dtype=dtype)) if affine else None
        self.bias = nn.Parameter(torch.empty(sizes, device=device, dtype=dtype)) if affine and bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @overload
    def forward(self, x: Tensor, **fused: Unpack[Epilogues]) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, *, return_residual: bool, **fused: Unpack[Epilogues]) -> Output: ...
    @named
    def forward(
        self,
        x: Tensor,
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
        return functional.normalize(
            x,
            self._region,
            registered(self, "weight"),
            registered(self, "bias"),
            self.eps,
            self.center,
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

    def extra_repr(self) -> str:
        groups = "" if self.num_groups is None else f", num_groups={self.num_groups}"
        return self._with_options(
            f"{self.pattern!r}, num_features={self.num_features}{groups}, eps={self.eps}, "
            f"affine={self.affine}, bias={self.bias is not None}, center={self.center}"
        )


def _sized(region: Region, features: tuple[int, ...]) -> Region:
    """The region with the sizes of the feature axes fixed; every dimension is checked by reading it alone."""
    dims = [Region((dim,)) for dim in region.dims]
    wanted = sum(dim.has_features for dim in dims)
    if features and len(features) != wanted:
        raise ArgumentError(
            f"num_features needs one size for each of the {wanted} channel dimensions of {str(region)!r} "
            f"(those with an axis whose name starts with c), got {features}"
        )
    remaining = list(features)
    for dim in dims:
        known = math.prod(axis.size or 1 for axis in dim.axes)
        given = remaining.pop(0) if remaining and dim.has_features else None
        levels = dim.levels((known if given is None else given,))
        if given is not None:
            region = region.bind(**{level.name: level.size for level in levels})
    return region
