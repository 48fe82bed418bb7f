"""The statistics of the study: intervals, tests and censored steps. They use plain numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import special, stats

from normkit.errors import ArgumentError

MOST = 100_000
"""A number of values that nobody will measure."""
Bound = Literal["exact", "at least", "at most", "unknown"]


@dataclass(frozen=True)
class Interval:
    """An estimate from `n` values, and the interval of the true value at a level."""

    value: float
    low: float
    high: float
    n: int


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of a mean: `mean ± t(n - 1) s / sqrt(n)`.

    Args:
        values: at least two.
        level: the fraction of such intervals that contain the true mean, for normal values.

    >>> interval = t_interval([1.0, 2.0, 3.0])
    >>> round(interval.low, 3), interval.value, round(interval.high, 3)
    (-0.484, 2.0, 4.484)
    """
    if len(values) < 2:
        raise ArgumentError(f"an interval needs at least two values, got {len(values)}: use more seeds")
    mean = math.fsum(values) / len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = quantile((1 + level) / 2, len(values) - 1) * error
    return Interval(mean, mean - half, mean + half, len(values))


@lru_cache(maxsize=4096)
def quantile(part: float, freedom: int) -> float:
    """The value below which this part of Student's distribution lies.

    >>> round(quantile(0.975, 9), 3)
    2.262
    """
    return float(stats.t.ppf(part, freedom))


def t_test(values: Sequence[float]) -> float:
    """Two-sided p of a mean of 0, for example of paired differences.

    Equal values have no t; their p is that of the sign-flip test, `2^(1 - n)`, or 1 if they are all 0.

    >>> t_test([0.5, 0.5, 0.5])
    0.25
    """
    spread = float(np.ptp(values))
    if spread <= 1e-12 * max(abs(v) for v in values):
        return 1.0 if values[0] == 0 else 2.0 ** (1 - len(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return 2 * float(special.stdtr(len(values) - 1, -abs(math.fsum(values) / len(values) / error)))


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of some values; 0 for fewer than two.

    >>> deviation([1.0, 2.0, 3.0])
    1.0
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def detectable(spread: float, count: int, tail: float, power: float = 0.8) -> float:
    """The mean that a t test finds with a probability of `power`.

    Args:
        spread: standard deviation of a value.
        count: number of values.
        tail: probability of each tail of the test.
        power: probability of a p below twice the tail.

    >>> round(detectable(1.0, 10, 0.025), 2)
    0.99
    """
    if count < 2:
        return math.inf
    return (quantile(1 - tail, count - 1) + quantile(power, count - 1)) * spread / math.sqrt(count)


def seeds_for(smallest: float, spread: float, count: int, tail: float) -> int | None:
    """The number of values with which `smallest` is detectable, at least `count`; None if that is above `MOST`.

    >>> seeds_for(1.0, 1.0, 2, 0.025), seeds_for(1e-9, 1.0, 2, 0.025)
    (10, None)
    """
    low, high = count, MOST
    if detectable(spread, high, tail) > smallest:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if detectable(spread, middle, tail) <= smallest else (middle + 1, high)
    return low


def median_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """A median between two order statistics; it assumes nothing about the distribution.

    >>> median_interval(list(range(1, 11)))
    Interval(value=5.5, low=2, high=9, n=10)
    """
    ordered, n = sorted(values), len(values)
    rank = int(stats.binom.ppf((1 - level) / 2, n, 0.5))
    low, high = (ordered[rank - 1], ordered[n - rank]) if rank > 0 else (-math.inf, math.inf)
    return Interval(float(np.median(ordered)), low, high, n)


def sign_test(values: Sequence[float]) -> float:
    """Two-sided p of a median of 0.

    >>> sign_test([1.0, 2.0, 3.0, 4.0])
    0.125
    """
    signs = [value > 0 for value in values if value != 0]
    return float(stats.binomtest(sum(signs), len(signs)).pvalue) if signs else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction: below alpha, the chance of one false finding in the whole family is below alpha.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected


def family_level(alpha: float, size: int) -> float:
    """The level at which `size` intervals all hold at once with chance `1 - alpha` (Bonferroni).

    >>> family_level(0.05, 10)
    0.995
    """
    return 1 - alpha / max(1, size)


def log2_ratios(
    first: Sequence[int | None], second: Sequence[int | None], cap: int
) -> tuple[list[float], Bound] | None:
    """`log2(first / second)` pair by pair; None is a run that did not reach its target within `cap` steps.

    Such a run counts as `cap`, its earliest possible number of steps. If only `first` has such runs, every ratio and
    their mean are at least the returned ones; if only `second` has, at most. If both have, the mean is that of steps
    within the cap, and it is unknown whether the true mean is above or below it.

    >>> log2_ratios([100, None], [50, 50], cap=200)
    ([1.0, 2.0], 'at least')
    """
    pairs = list(zip(first, second, strict=True))
    late_first, late_second = any(a is None for a, _ in pairs), any(b is None for _, b in pairs)
    if not pairs:
        return None
    ratios = [math.log2((a or cap) / (b or cap)) for a, b in pairs]
    if late_first and late_second:
        return ratios, "unknown"
    return ratios, "at least" if late_first else "at most" if late_second else "exact"


def arrival(smoothed: Sequence[float], window: int, target: float) -> int | None:
    """The first step whose smoothed loss is at most `target`; the first smoothed loss belongs to step `window`.

    >>> arrival([0.9, 0.4, 0.6], window=20, target=0.5)
    21
    """
    return next((window + i for i, loss in enumerate(smoothed) if loss <= target), None)


def median_steps(steps: Sequence[int | None], cap: int) -> tuple[float, bool] | None:
    """Median of steps to target, and whether it is only a lower bound because too few runs reached the target.

    >>> median_steps([80, None, 100], cap=200), median_steps([None, None, 100], cap=200)
    ((100.0, False), (200.0, True))
    """
    if not steps:
        return None
    ordered = sorted(math.inf if s is None else float(s) for s in steps)
    upper = ordered[len(ordered) // 2]
    lower = ordered[(len(ordered) - 1) // 2]
    if math.isinf(upper):
        return (float(cap) if math.isinf(lower) else (lower + cap) / 2), True
    return (lower + upper) / 2, False


def complete(columns: Sequence[Mapping[int, float | None]]) -> list[list[float]]:
    """The rows (one for each seed) in which every column (one for each variant) has a value.

    >>> complete([{1: 0.5, 2: 0.25}, {1: 0.75, 2: None}])
    [[0.5, 0.75]]
    """
    shared = sorted(set.intersection(*(set(column) for column in columns))) if columns else []
    rows = [[column[seed] for column in columns] for seed in shared]
    return [[value for value in row if value is not None] for row in rows if None not in row]


def held_out_range(rows: Sequence[Sequence[float]]) -> list[float]:
    """For each row, its value in the highest column minus that in the lowest, where the other rows rank the columns.

    >>> held_out_range([[1.0, 2.0], [1.0, 3.0], [2.0, 2.5]])
    [1.0, 2.0, 0.5]
    """
    table = np.asarray(rows)
    found = []
    for i, row in enumerate(table):
        others = np.delete(table, i, axis=0).mean(axis=0)
        found.append(float(row[others.argmax()] - row[others.argmin()]))
    return found


def permutation_test(rows: Sequence[Sequence[float]], draws: int = 9999) -> float:
    """p of no difference between columns, by permutations within rows; the statistic is the variance of column means.

    >>> permutation_test([[1.0, 2.0, 3.0]] * 8) < 0.001
    True
    """
    table = np.asarray(rows)
    generator = np.random.default_rng(0)
    observed = table.mean(axis=0).var()
    drawn = generator.permuted(np.broadcast_to(table, (draws, *table.shape)), axis=2).mean(axis=1).var(axis=1)
    # The observed order is one of the possible ones, so it counts too.
    return float((1 + (drawn >= observed * (1 - 1e-12)).sum()) / (1 + draws))
