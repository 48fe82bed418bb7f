"""`torch.func.vmap` over the operators: many calls are one call with one more kept axis.

Copies of a model side by side are more channels: the mapped dimension is laid next to the channels, as an axis of its
own, ``"[b] c [...]"`` becoming ``"[b] (copies=8 c) [...]"``, and each copy brings its own weight. Where a convolution
has been mapped the tensor already lies so in memory, and nothing is copied.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from normkit.kernels import ops
from normkit.pattern import ELLIPSIS, Axis, Region, parse

COPIES = "copies"


class _Fold:
    """One mapped call: how its tensors go into the call that serves all copies, and come out of it."""

    def __init__(self, x: Tensor, at: int, pattern: str) -> None:
        self.copies = x.shape[at]
        self.shape = (*x.shape[:at], *x.shape[at + 1 :])
        self.at, self.pattern, self.before = _folded(pattern, self.shape, self.copies)
        self.x = x.movedim(at, self.at).flatten(self.at, self.at + 1)

    def parameter(self, flat: Tensor | None, at: int | None) -> Tensor | None:
        """The weights of all copies in a row."""
        if flat is None:
            return None
        rows = flat.expand(self.copies, *flat.shape) if at is None else flat.movedim(at, 0)
        return rows.flatten()

    def statistic(self, flat: Tensor, at: int | None) -> Tensor:
        """Given statistics, in the order of the kept axes, the copies among them."""
        rows = flat.expand(self.copies, *flat.shape) if at is None else flat.movedim(at, 0)
        return rows.reshape(self.copies, self.before, -1).transpose(0, 1).flatten()

    def statistic_back(self, flat: Tensor) -> Tensor:
        if not flat.numel():
            return flat.expand(self.copies, 0)
        return flat.view(self.before, self.copies, -1).transpose(0, 1).reshape(self.copies, -1)

    def back(self, y: Tensor) -> Tensor:
        out: Tensor = y.unflatten(self.at, (self.copies, self.shape[self.at]))
        return out


@lru_cache(maxsize=1024)
def _folded(pattern: str, shape: tuple[int, ...], copies: int) -> tuple[int, str, int]:
    """The dimension that takes the copies in, the pattern with them, and the kept elements before that dimension."""
    region = parse(pattern)
    levels = region.levels(shape)
    # Next to the channels, so that the weights of all copies are those of one long row of channels.
    host = next((level for level in levels if level.feature), levels[0])
    kept = [level for level in levels if not level.reduced]
    before = math.prod(level.size for level in kept if level.dim < host.dim)
    return host.dim, _with_copies(region, host.dim, len(shape), copies), before


def _with_copies(region: Region, dim: int, dims: int, copies: int) -> str:
    """The pattern with an axis of copies in front of what is in dimension `dim` of `dims`."""
    spread: list[tuple[Axis, ...]] = []
    for group in region.dims:
        first = group[0]
        if first.name == ELLIPSIS:
            spread += [(Axis(f"at{i}", first.reduced),) for i in range(dims - len(region.dims) + 1)]
        else:
            spread.append(group)
    spread[dim] = (Axis(COPIES, False, copies), *spread[dim])
    return str(Region(tuple(spread)))


def _normalize(
    info: Any,
    in_dims: tuple[int | None, ...],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
    at, at_weight, at_bias, *_ = in_dims
    if at is None:
        x, at = x.expand(info.batch_size, *x.shape), 0
    fold = _Fold(x, at, pattern)
    y, mean, std = torch.ops.normkit.normalize.default(
        fold.x, fold.parameter(weight, at_weight), fold.parameter(bias, at_bias), fold.pattern, eps, center
    )
    return (fold.back(y), fold.statistic_back(mean), fold.statistic_back(std)), (fold.at, 0, 0)


def _standardize(
    info: Any,
    in_dims: tuple[int | None, ...],
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
) -> tuple[Tensor, int]:
    at, at_mean, at_var, at_weight, at_bias, *_ = in_dims
    if at is None:
        x, at = x.expand(info.batch_size, *x.shape), 0
    fold = _Fold(x, at, pattern)
    y = torch.ops.normkit.standardize.default(
        fold.x,
        fold.statistic(mean, at_mean),
        fold.statistic(var, at_var),
        fold.parameter(weight, at_weight),
        fold.parameter(bias, at_bias),
        fold.pattern,
        eps,
    )
    return fold.back(y), fold.at


torch.library.register_vmap("normkit::normalize", _normalize, lib=ops.library)
torch.library.register_vmap("normkit::standardize", _standardize, lib=ops.library)

OPERATORS = (torch.ops.normkit.normalize.default, torch.ops.normkit.standardize.default)
"""What has a rule here."""
