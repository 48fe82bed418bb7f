"""A metric over learning rates: a smooth fit through noisy tuning runs, and which rates are as good as the best one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FAR = 4.0
"""A rate whose mean is this many standard errors above the lowest one takes no part in the fit."""
WITHIN = 1.0
"""Rates whose fitted value is within this many standard errors of the lowest one cannot be told apart from it."""


@dataclass(frozen=True)
class Curve:
    """Values over learning rates, in ascending order of the rates; lower is better.

    Attributes:
        rates: the rates that were tried.
        means: the mean at each rate.
        fitted: the mean by the fit; infinite at a rate that takes no part in it.
        errors: the standard error of the fitted value minus that at the best rate.
        best: index of the best rate by the fit.
        noise: standard deviation of a run, pooled over the rates near the best one; 0 with one run a rate.
    """

    rates: tuple[float, ...]
    means: tuple[float, ...]
    fitted: tuple[float, ...]
    errors: tuple[float, ...]
    best: int
    noise: float

    @property
    def ties(self) -> tuple[float, ...]:
        """The rates that cannot be told apart from the best one, the best first."""
        lowest = self.fitted[self.best]
        near = [i for i, value in enumerate(self.fitted) if value - lowest <= WITHIN * self.errors[i]]
        return tuple(self.rates[i] for i in sorted(near, key=lambda i: (i != self.best, self.fitted[i])))

    def value(self, rate: float) -> float:
        """The fitted value at a rate; for one that takes no part in the fit, a value above all that do."""
        known = dict(zip(self.rates, self.fitted, strict=True))
        if math.isfinite(known.get(rate, math.inf)):
            return known[rate]
        return max(value for value in self.fitted if math.isfinite(value)) + FAR * self.noise


def fit(tried: Mapping[float, Sequence[float]], second: Mapping[float, float] | None = None) -> Curve | None:
    """The curve of some runs: a parabola over log rate, through the rates whose means are near the lowest one.

    The noise of single rates is averaged out, and a rate at which training breaks does not bend the parabola. If fewer
    than four rates are near, their means are used as they are.

    Args:
        tried: the values at each rate, lower is better; infinite for a run that broke.
        second: further values that decide between equal ones.

    >>> noisy = {10.0**i: [(i - 1) ** 2 + 0.1, (i - 1) ** 2 - 0.1] for i in range(4)}
    >>> curve = fit(noisy)
    >>> curve.rates[curve.best], curve.ties
    (10.0, (10.0,))
    """
    rates = tuple(sorted(tried))
    means = tuple(math.fsum(tried[rate]) / len(tried[rate]) for rate in rates)
    finite = [i for i, mean in enumerate(means) if math.isfinite(mean)]
    if not finite:
        return None
    second = second or {}
    count = min(len(tried[rate]) for rate in rates)
    lowest = min(finite, key=lambda i: (means[i], second.get(rates[i], 0.0), rates[i]))
    near = sorted(finite, key=lambda i: means[i])[:4]
    noise = math.sqrt(np.mean([np.var(tried[rates[i]], ddof=1) for i in near])) if count > 1 else 0.0
    index = _block(means, lowest, means[lowest] + FAR * noise * math.sqrt(2 / count))
    design = _parabola(np.log10([rates[i] for i in index]) - math.log10(rates[lowest]), [means[i] for i in index])
    # Rounding must not decide between rates whose means are equal.
    values = [float(f"{value:.10g}") for value in design @ [means[i] for i in index]]
    fitted = dict(zip(index, values, strict=True))
    best = min(index, key=lambda i: (fitted[i], means[i], second.get(rates[i], 0.0), rates[i]))
    weights = design - design[index.index(best)]
    errors = dict(zip(index, noise * np.sqrt((weights**2).sum(1) / count), strict=True))
    return Curve(
        rates,
        means,
        tuple(fitted.get(i, math.inf) for i in range(len(rates))),
        tuple(float(errors.get(i, 0.0)) for i in range(len(rates))),
        best,
        noise,
    )


def common_rate(curves: Sequence[Curve]) -> float | None:
    """The rate at which the mean of several curves is lowest.

    >>> curves = [fit({0.1: [value], 1.0: [0.5]}) for value in (0.2, 0.6)]
    >>> common_rate(curves)
    0.1
    """
    rates = sorted({rate for curve in curves for rate in curve.rates})
    return min(rates, key=lambda rate: (math.fsum(curve.value(rate) for curve in curves), rate), default=None)


def _block(means: Sequence[float], lowest: int, bound: float) -> list[int]:
    """The indices next to each other around the lowest mean whose means are at most the bound."""
    first = last = lowest
    while first > 0 and means[first - 1] <= bound:
        first -= 1
    while last < len(means) - 1 and means[last + 1] <= bound:
        last += 1
    return list(range(first, last + 1))


def _parabola(x: np.ndarray, means: Sequence[float]) -> np.ndarray:
    """The matrix that turns means into fitted values: of a parabola that opens upwards, or else of a line."""
    if len(x) < 4:
        return np.eye(len(x))
    columns = np.vander(x, 3)
    if (np.linalg.pinv(columns) @ means)[0] <= 0:
        columns = columns[:, 1:]
    return np.asarray(columns @ np.linalg.pinv(columns))
