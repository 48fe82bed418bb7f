"""The definition of every method in plain torch: the oracle of the tests, and what runs where no kernel does.

Computed in float64 on a CPU and in at least float32 elsewhere and in ONNX. Differentiable throughout, so that it also
gives the second derivatives of the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normkit.pattern import Level, Region


class Gradients(NamedTuple):
    """Of one call: of the input, the weight and the bias; the last two flat, in logical order."""

    x: Tensor
    weight: Tensor
    bias: Tensor


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of moments and of weight arithmetic: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype of everything in between: float64 on a CPU, but not in a graph that is to leave for other runtimes."""
    wide = x.device.type == "cpu" and not torch.onnx.is_in_onnx_export()
    return torch.promote_types(x.dtype, torch.float64 if wide else torch.float32)


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, region: Region, eps: float, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``y = (x - mean) / sqrt(var + eps) * weight + bias`` with the moments of x; returns y, mean and std = sqrt(var).

    The standard deviation is kept, not the variance, because its range in fp32 is that of the data.
    """
    work = _Work(x, region)
    mean, var = work.moments(center)
    y = work.affine(work.standardized(mean, var, eps), weight, bias)
    return (
        work.like_x(y),
        work.flat(mean) if center else x.new_empty(0, dtype=work.stat),
        work.flat(var.sqrt()),
    )


def standardize(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    region: Region,
    eps: float,
) -> Tensor:
    """The same with a mean and a variance that are given."""
    work = _Work(x, region)
    y = work.standardized(work.statistic(mean), work.statistic(var), eps)
    return work.like_x(work.affine(y, weight, bias))


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    region: Region,
    eps: float,
    center: bool,
    given: tuple[Tensor, Tensor] | None = None,
) -> Gradients:
    """The gradients of `normalize`, or of `standardize` where moments are given.

    ``dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat))`` with ``g = dy * weight``; with given moments
    ``dx = rstd * g``.
    """
    work = _Work(x, region)
    if given is None:
        mean, var = work.moments(center)
    else:
        mean, var = work.statistic(given[0]), work.statistic(given[1])
    upstream = work.split(dy)
    x_hat = work.standardized(mean, var, eps)
    g = work.affine(upstream, weight, None)
    inside = g
    if given is None:
        inside = g - x_hat * work.average(g * x_hat)
        if center:
            inside = inside - work.average(g)
    dx = inside / (var + eps).sqrt()
    return Gradients(work.like_x(dx), work.over_features(upstream * x_hat), work.over_features(upstream))


class _Work:
    """One tensor seen through a region: dimensions split into axes, in the working dtype."""

    def __init__(self, x: Tensor, region: Region) -> None:
        self.x = x
        self.levels: Sequence[Level] = region.levels(x.shape)
        self.dtype = working_dtype(x)
        self.stat = arithmetic_dtype(x.dtype)
        self.sizes = [level.size for level in self.levels]
        self.reduced = [i for i, level in enumerate(self.levels) if level.reduced]
        self.values = self.split(x)

    def split(self, t: Tensor) -> Tensor:
        return t.to(self.dtype).reshape(self.sizes)

    def average(self, t: Tensor) -> Tensor:
        # An empty list of dimensions would mean all of them to torch.
        return t.mean(self.reduced, keepdim=True) if self.reduced else t

    def moments(self, center: bool) -> tuple[Tensor, Tensor]:
        if not center:
            return self.values.new_zeros([1] * len(self.sizes)), self.average(self.values.square())
        mean = self.average(self.values)
        mean = mean + self.average(self.values - mean)
        return mean, self.average((self.values - mean).square())

    def standardized(self, mean: Tensor, var: Tensor, eps: float) -> Tensor:
        return (self.values - mean) / (var + eps).sqrt()

    def statistic(self, t: Tensor) -> Tensor:
        return t.to(self.dtype).reshape([1 if level.reduced else level.size for level in self.levels])

    def affine(self, t: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        shape = [level.size if level.feature else 1 for level in self.levels]
        if weight is not None:
            t = t * weight.to(self.dtype).reshape(shape)
        return t if bias is None else t + bias.to(self.dtype).reshape(shape)

    def over_features(self, t: Tensor) -> Tensor:
        others = [i for i, level in enumerate(self.levels) if not level.feature]
        return (t.sum(others) if others else t).reshape(-1).to(self.stat)

    def flat(self, t: Tensor) -> Tensor:
        kept = math.prod(level.size for level in self.levels if not level.reduced)
        return t.reshape(kept).to(self.stat)

    def like_x(self, t: Tensor) -> Tensor:
        return t.reshape(self.x.shape).to(self.x.dtype)
