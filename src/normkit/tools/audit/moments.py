"""Mean and variance of what a norm is given, pooled over calls; and padding at the end of sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean and biased variance of each channel.

    Attributes:
        count: elements of one channel.
        samples: how many samples they come from.
        mean, var: of shape (C,), in float64.
        largest: the largest magnitude; NaN or infinite if one of the values is.
        constant: which channels had one value only.
    """

    count: int
    samples: int
    mean: Tensor
    var: Tensor
    largest: float
    constant: Tensor

    def with_(self, other: Moments) -> Moments:
        """Both together, by Chan's formula."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        second = self.var * self.count + other.var * other.count
        var = (second + delta**2 * (self.count * other.count / count)) / count
        constant = self.constant & other.constant & (delta == 0)
        return Moments(count, self.samples + other.samples, mean, var, max(self.largest, other.largest), constant)


def moments(x: Tensor) -> Moments | None:
    """Of each channel of (N, C, ...); None for another kind of input."""
    if x.dim() < 2 or not x.is_floating_point() or not x.numel():
        return None
    flat = x.detach().transpose(0, 1).flatten(1).cpu().double()
    mean = flat.mean(1)
    var = (flat - mean[:, None]).square().mean(1)
    constant = flat.amax(1) == flat.amin(1)
    return Moments(flat.shape[1], x.shape[0], mean, var, float(flat.abs().max()), constant)


def padded_share(x: Tensor) -> float:
    """Share of the positions of (N, C, L) that are padding: equal vectors at the end, after others that vary.

    >>> x = torch.randn(2, 3, 10)
    >>> x[1, :, 6:] = 0.0
    >>> padded_share(x)
    0.2
    """
    if x.dim() != 3 or x.shape[0] < 2 or x.shape[2] < 4 or not x.is_floating_point():
        return 0.0
    x = x.detach().cpu().double()
    last = x[:, :, -1:]
    # A layer computes equal values from equal ones up to the order of its sums: some units of 1e-7.
    same = ((x - last).abs() <= 1e-6 * (1e-6 + last.abs())).all(1)
    trailing = same.flip(1).cumprod(1).sum(1)
    # One equal position is the last itself; a sample that is constant throughout is no padded one.
    trailing = torch.where((trailing < 2) | (trailing == x.shape[2]), 0, trailing)
    # Padding differs between samples; what all samples share is the work of a layer.
    return 0.0 if len(trailing.unique()) < 2 else float(trailing.sum()) / (x.shape[0] * x.shape[2])
