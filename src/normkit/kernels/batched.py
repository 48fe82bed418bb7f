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

from normkit.kernels.formula import Arguments
from normkit.pattern import ELLIPSIS, Axis, Region, parse

COPIES = "copies"


def stacked(t: Tensor, at: int | None, copies: int) -> Tensor:
    """A tensor with its mapped dimension first, or repeated if it has none."""
    return t.expand(copies, *t.shape) if at is None else t.movedim(at, 0)


class _Fold:
    """One mapped call: how its tensors go into the call that serves all copies, and come out of it."""

    def __init__(self, x: Tensor, at: int, pattern: str) -> None:
        self.copies = x.shape[at]
        self.shape = (*x.shape[:at], *x.shape[at + 1 :])
        self.at, self.pattern, self.before = _folded(pattern, self.shape, self.copies)
        self.x = x.movedim(at, self.at).flatten(self.at, self.at + 1)

    def values(self, flat: Tensor | None, at: int | None, before: int = 1) -> Tensor | None:
        """The values of all copies in a row, with the copies after `before` kept elements of statistics."""
        if flat is None:
            return None
        return stacked(flat, at, self.copies).reshape(self.copies, before, -1).transpose(0, 1).flatten()

    def statistic_back(self, flat: Tensor) -> Tensor:
        if not flat.numel():
            return flat.expand(self.copies, 0)
        return flat.view(self.before, self.copies, -1).transpose(0, 1).reshape(self.copies, -1)


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


def norm(
    info: Any, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
    """The rule of ``normkit::norm`` for calls that fuse nothing."""
    a = Arguments(*args)
    at: Any = Arguments(*in_dims)  # type: ignore[arg-type]
    x, at_x = (a.x, at.x) if at.x is not None else (a.x.expand(info.batch_size, *a.x.shape), 0)
    fold = _Fold(x, at_x, a.pattern)
    call = a._replace(
        x=fold.x,
        weight=fold.values(a.weight, at.weight),
        bias=fold.values(a.bias, at.bias),
        pattern=fold.pattern,
        mean=fold.values(a.mean, at.mean, fold.before),
        var=fold.values(a.var, at.var, fold.before),
    )
    y, _, mean, std = torch.ops.normkit.norm.default(*call)
    moments = [None if t is None else fold.statistic_back(t) for t in (mean, std)]
    return (y.unflatten(fold.at, (fold.copies, fold.shape[fold.at])), None, *moments), (
        fold.at,
        None,
        *[None if t is None else 0 for t in moments],
    )
