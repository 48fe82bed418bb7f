"""A learning curve of several seeds: their mean and its interval, at a small number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import stats

from normkit.study.training.trial import smooth

POINTS = 72
"""More points could not be distinguished in a panel."""


class Curve(NamedTuple):
    """Steps, and at each the mean and the ends of its 95 % interval."""

    steps: list[int]
    value: list[float]
    low: list[float]
    high: list[float]


def mean_curve(losses: Sequence[Sequence[float]], window: int) -> Curve:
    """The mean over runs of their losses, each averaged over `window` steps: geometric if all are positive.

    A run that ended early has no losses after its end; the mean ends where fewer than two runs have losses.

    >>> mean_curve([[1.0, 1.0], [4.0, 4.0]], 2).value
    [2.0]
    """
    lines = [smooth(run, min(window, len(run))) for run in losses if len(run)]
    starts = [min(window, len(run)) for run in losses if len(run)]
    if not lines:
        return Curve([], [], [], [])
    lengths = sorted((len(line) for line in lines), reverse=True)
    length = lengths[min(1, len(lengths) - 1)]
    log = all(value > 0 for line in lines for value in line)
    count = min(POINTS, length)
    picked = [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]
    curve = Curve([], [], [], [])
    for place in picked:
        there = np.asarray([line[place] for line in lines if len(line) > place])
        there = np.log(there) if log else there
        mean, half = float(there.mean()), _half(there)
        back = math.exp if log else float
        curve.steps.append(place + max(starts))
        curve.value.append(back(mean))
        curve.low.append(back(mean - half))
        curve.high.append(back(min(mean + half, 700.0)))
    return curve


def _half(values: np.ndarray) -> float:
    if len(values) < 2:
        return 0.0
    return _quantile(len(values)) * float(values.std(ddof=1)) / math.sqrt(len(values))


@cache
def _quantile(count: int) -> float:
    """Of Student's t; a page asks for a few counts some ten thousand times."""
    return float(stats.t.ppf(0.975, count - 1))
