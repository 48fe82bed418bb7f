"""A metric over learning rates, from noisy tuning runs: the best rate, and which others are as good by these runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TIES = 1.0
"""A method takes the common rate if that is within this many standard errors of its own best one."""
RIVALS = 2.0
"""Tuning does not exclude a rate whose mean is within this many standard errors of the lowest one."""


@dataclass(frozen=True)
class Curve:
    """Means over learning rates, in ascending order of the rates; lower is better.

    Attributes:
        rates: the rates that were tried.
        means: the mean at each rate.
        best: index of the best rate.
        error: the standard error of the difference of two means, pooled over the rates near the best one; 0 with one
            run a rate.
        worse: for each rate whether every run is worse than that of the same seed at the best rate.
    """

    rates: tuple[float, ...]
    means: tuple[float, ...]
    best: int
    error: float
    worse: tuple[bool, ...]

    def takes(self, rate: float) -> bool:
        """Whether a method would take this rate instead of its own best one.

        Its runs cannot tell the two apart, not all of its seeds are worse there, and the rate is no higher: a higher
        one may break with seeds that tuning has not tried.
        """
        near = rate in self.within(TIES) and rate <= self.rates[self.best]
        return near and not self.worse[self.rates.index(rate)]

    def within(self, errors: float) -> tuple[float, ...]:
        """The rates whose means are within this many standard errors of the lowest one, the best first."""
        bound = self.means[self.best] + errors * self.error
        near = [i for i, mean in enumerate(self.means) if mean <= bound]
        return tuple(self.rates[i] for i in sorted(near, key=lambda i: (i != self.best, self.means[i])))

    def value(self, rate: float) -> float:
        """The mean at a rate, up to that of a rate that the method would not take; so has one that was not tried."""
        most = self.means[self.best] + TIES * self.error
        return self.means[self.rates.index(rate)] if self.takes(rate) else most


def curve_of(tried: Mapping[float, Sequence[float]], second: Mapping[float, float] | None = None) -> Curve | None:
    """The curve of some runs; None if all broke.

    Args:
        tried: the values at each rate, lower is better; infinite for a run that broke.
        second: further values that decide between equal means; then the lower rate is taken.

    >>> curve = curve_of({0.01: [0.3, 0.5], 0.1: [0.1, 0.2], 1.0: [0.2, 0.2]})
    >>> curve.rates[curve.best], curve.within(1.0)
    (0.1, (0.1, 1.0))
    """
    rates = tuple(sorted(tried))
    means = tuple(math.fsum(tried[rate]) / len(tried[rate]) for rate in rates)
    finite = [i for i, mean in enumerate(means) if math.isfinite(mean)]
    if not finite:
        return None
    second = second or {}
    count = min(len(tried[rate]) for rate in rates)
    best = min(finite, key=lambda i: (means[i], second.get(rates[i], 0.0), rates[i]))
    near = sorted(finite, key=lambda i: means[i])[:4]
    variance = float(np.mean([np.var(tried[rates[i]], ddof=1) for i in near])) if count > 1 else 0.0
    own = tried[rates[best]]
    worse = tuple(count > 1 and all(a > b for a, b in zip(tried[rate], own, strict=False)) for rate in rates)
    return Curve(rates, means, best, math.sqrt(2 * variance / count), worse)


def common_rate(curves: Sequence[Curve]) -> float | None:
    """The rate at which the mean of several curves is lowest; a curve has no say between rates it would not take.

    >>> curves = [curve_of({0.1: [value, value], 1.0: [0.5, 0.6]}) for value in (0.2, 0.6)]
    >>> common_rate(curves)
    0.1
    """
    rates = sorted({rate for curve in curves for rate in curve.rates})
    return min(rates, key=lambda rate: (math.fsum(curve.value(rate) for curve in curves), rate), default=None)
