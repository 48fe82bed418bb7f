"""Mean and variance of the inputs of a norm, pooled over calls; padding at one end of sequences; and chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normkit.merging import merged_variance


@dataclass(frozen=True)
class InputMoments:
    """Mean and biased variance of each channel.

    Attributes:
        count: elements of one channel.
        samples: how many samples they come from.
        mean, var: of shape (C,), in float64.
        between: variance of the samples' means, of shape (C,).
        largest: the largest magnitude; NaN or infinite if one of the values is.
        constant: which channels had one value only.
    """

    count: int
    samples: int
    mean: Tensor
    var: Tensor
    between: Tensor
    largest: float
    constant: Tensor

    def with_(self, other: InputMoments) -> InputMoments:
        """Both together, by Chan's formula."""
        count, samples, delta = self.count + other.count, self.samples + other.samples, other.mean - self.mean
        return InputMoments(
            count,
            samples,
            self.mean + delta * (other.count / count),
            merged_variance(self.var, other.var, delta, other.count / count),
            merged_variance(self.between, other.between, delta, other.samples / samples),
            max(self.largest, other.largest),
            self.constant & other.constant & (delta == 0),
        )

    def independent(self) -> float:
        """As many independent elements would have a mean as uncertain as that of these samples; median over channels.

        >>> brightness = torch.arange(8.0)[:, None, None]
        >>> round(moments(brightness.expand(8, 3, 100)).independent())  # 800 elements, and 8 values
        7
        """
        if self.samples < 2:
            return 1.0
        # The mean of n samples has the variance between / (n - 1).
        ratio = self.var / self.between.clamp(min=torch.finfo(torch.float64).tiny)
        return min(float(self.count), float(ratio.median()) * (self.samples - 1))


def moments(x: Tensor) -> InputMoments | None:
    """Of each channel of (N, C, ...); None for another kind of input."""
    if x.dim() < 2 or not x.is_floating_point() or not x.numel() or x.is_meta:
        return None
    flat = x.detach().reshape(*x.shape[:2], -1).transpose(0, 1).cpu().double()
    mean = flat.mean((1, 2))
    var = (flat - mean[:, None, None]).square().mean((1, 2))
    between = (flat.mean(2) - mean[:, None]).square().mean(1)
    constant = flat.amax((1, 2)) == flat.amin((1, 2))
    count = flat.shape[1] * flat.shape[2]
    return InputMoments(count, x.shape[0], mean, var, between, float(flat.abs().max()), constant)


def padded_share(x: Tensor) -> float:
    """Share of the positions of (N, C, L) that are padding: equal vectors at one end, next to others that vary.

    >>> x = torch.randn(2, 3, 10)
    >>> x[1, :, 6:] = 0.0
    >>> padded_share(x)
    0.2
    """
    if x.dim() != 3 or x.shape[0] < 2 or x.shape[2] < 4 or not x.is_floating_point() or x.is_meta:
        return 0.0
    x = x.detach().cpu().double()
    return max(_trailing_share(x), _trailing_share(x.flip(2)))


def _trailing_share(x: Tensor) -> float:
    last = x[:, :, -1:]
    # A layer computes equal values from equal ones up to the order of its sums: some units of 1e-7.
    same = ((x - last).abs() <= 1e-6 * (1e-6 + last.abs())).all(1)
    trailing = same.flip(1).cumprod(1).sum(1)
    # One equal position is the last itself; a sample that is constant throughout is no padded one.
    trailing = torch.where((trailing < 2) | (trailing == x.shape[2]), 0, trailing)
    # Padding differs between samples; what all samples share is the work of a layer.
    return 0.0 if len(trailing.unique()) < 2 else float(trailing.sum()) / (x.shape[0] * x.shape[2])


def is_noise(x: Tensor) -> bool:
    """Whether a tensor holds what torch.randn or torch.rand gives: that mean and variance, and neighbours unrelated.

    >>> is_noise(torch.randn(2, 3, 16, 16)), is_noise(torch.randn(2, 3, 16, 16).cumsum(-1))
    (True, False)
    """
    if not x.is_floating_point() or x.is_meta or x.numel() < 256:
        return False
    x = x.detach().cpu().double()
    mean, var = float(x.mean()), float(x.var())
    # Five standard errors each, of a mean, of a normal variance, and of a correlation.
    error = 5 / math.sqrt(x.numel())
    drawn = any(
        abs(mean - m) < error * v**0.5 and abs(var / v - 1) < error * 2**0.5 for m, v in ((0, 1), (0.5, 1 / 12))
    )
    z = (x - mean) / max(var, 1e-300) ** 0.5
    return drawn and abs(float((z[..., 1:] * z[..., :-1]).mean())) < error


def distance(first: InputMoments, second: InputMoments, samples: int) -> tuple[float, float]:
    """How far apart the means of two calls are, and how likely chance alone sets them so far apart.

    The distance is the median over the channels, in standard deviations of the first call. Chance is by Student's t
    of the samples' means: elements of one sample are not independent of one another. Whatever the channels have to do
    with one another, half of them exceed the quantile of a tail p with a probability of at most 2 p (Markov).

    Args:
        first, second: of each call.
        samples: independent ones in a call, at most; frames folded into the batch are more rows than samples.

    Returns:
        The distance and the bound of the probability, at most 1.
    """
    delta = (second.mean - first.mean).abs()
    apart = float((delta / (first.var + 1e-12).sqrt()).median())
    counts = [min(call.samples, samples) for call in (first, second)]
    freedom = sum(counts) - 2
    if freedom < 1:
        return apart, 1.0
    squares = torch.zeros_like(delta)
    for call, n in zip((first, second), counts, strict=True):
        squares += call.between * call.samples / max(call.samples - 1, 1) * (n - 1)
    t = delta / (squares / freedom * sum(1 / n for n in counts)).sqrt()
    return apart, min(1.0, 2 * student_tail(float(t.nan_to_num(0.0).median()), freedom))


def chance_of_means(groups: Sequence[Tensor]) -> float:
    """How likely values of one normal distribution have means as far apart as those of these groups.

    A bound: Student's t of each group against the others, with the variance inside the groups, times their number.

    >>> chance_of_means([torch.arange(8.0), torch.arange(8.0) + 100]) < 1e-12
    True
    """
    flat = [group.detach().flatten().cpu().double() for group in groups]
    total, everything = sum(len(values) for values in flat), sum(float(values.sum()) for values in flat)
    freedom = total - len(flat)
    within = sum(float((values - values.mean()).square().sum()) for values in flat) / freedom
    least = 1.0
    for values in flat:
        others = total - len(values)
        apart = abs(float(values.mean()) - (everything - float(values.sum())) / others)
        t = apart / math.sqrt(within * (1 / len(values) + 1 / others))
        least = min(least, student_tail(t, freedom))
    return min(1.0, least * len(flat))


def student_tail(t: float, freedom: int) -> float:
    """Probability that Student's t is farther from 0 than this; by the finite sums for whole degrees of freedom.

    >>> round(student_tail(12.706, 1), 4), round(student_tail(2.776, 4), 4)
    (0.05, 0.05)

    Source: Abramowitz & Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan2(abs(t), math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for index in range(odd, freedom - 1, 2):
        total += term
        term *= (index + 1) / (index + 2) * math.cos(angle) ** 2
    inside = math.sin(angle) * total
    return 1 - (2 / math.pi * (angle + inside) if odd else inside)
