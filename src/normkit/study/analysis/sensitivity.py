"""How much a learning rate matters to a method, from its tuning runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normkit.study.analysis import stats
from normkit.study.analysis.stats import Interval
from normkit.study.training.trial import Run


@dataclass(frozen=True)
class Sensitivity:
    """Learning-rate sensitivity: the mean loss over all rates that every method tries, minus that at the best rate.

    The loss at a rate is that on validation data, at most that before training: a rate at which training breaks counts
    as one at which nothing is learned. `stopped` of the `rates` were discarded; they count with the loss at which they
    were, so that the value is at most too high. Wortsman et al., 2023, https://arxiv.org/abs/2309.14322.
    """

    loss: Interval
    rates: int
    stopped: int


def above_best(losses: Sequence[float], best: float) -> float:
    """The formula of the sensitivity: the mean of the losses at all rates, minus the loss at the best one.

    >>> above_best([2.0, 1.0, 3.0], best=1.0)
    1.0
    """
    return _mean(losses) - best


def sensitivity(
    rates: Sequence[float], tuning: Sequence[Run], short: Sequence[Run], untrained: float
) -> Sensitivity | None:
    """The sensitivity of a method, from the means over its seeds.

    It is None if there are fewer than two runs at a rate, none at some rate, or no loss on validation data. The best
    rate is that of the means; the lowest loss of each seed would be too low by chance. Experiments on claims, which
    compare methods seed by seed, use `claims.measures.sensitivity_by_seed`.

    The standard deviation of a run is pooled over the rates, because each rate has only few runs.

    Args:
        rates: the rates to average over.
        tuning: the tuning runs, at these rates and others.
        short: the runs of the first steps, at all of these rates.
        untrained: the loss before training.
    """
    if any(run.validation_loss is None and run.state != "failed" and not run.broke for run in (*tuning, *short)):
        return None
    full, first = (_losses([run for run in runs if not run.trial.options], untrained) for runs in (tuning, short))
    found = {rate: full.get(rate) or first.get(rate) for rate in rates}
    values = [each for each in found.values() if each]
    count = min(map(len, values), default=0)
    if len(values) < len(rates) or count < 2 or not full:
        return None
    best = min(_mean(each) for each in full.values())
    value = above_best([_mean(each) for each in values], best)
    spread = math.sqrt(np.mean([np.var(each, ddof=1) for each in values]))
    # The best rate is one of those in the mean, so it counts 1 - 1/n, and each other one 1/n.
    half = stats.quantile(0.975, len(values) * (count - 1)) * spread * math.sqrt((1 - 1 / len(values)) / count)
    return Sensitivity(
        Interval(value, max(0.0, value - half), value + half, len(values) * count),
        len(rates),
        sum(rate not in full for rate in rates),
    )


def good_rates(means: Mapping[float, float], smallest: float) -> tuple[float, float] | None:
    """The lowest and highest rate of those around the best one whose means are worse by less than `smallest`.

    >>> good_rates({0.01: 0.3, 0.1: 0.105, 1.0: 0.1, 10.0: 0.2}, 0.01)
    (0.1, 1.0)
    """
    rates = sorted(means)
    if not rates:
        return None
    best = min(range(len(rates)), key=lambda i: means[rates[i]])
    near = [means[rate] - means[rates[best]] <= smallest for rate in rates]
    first = last = best
    while first > 0 and near[first - 1]:
        first -= 1
    while last < len(rates) - 1 and near[last + 1]:
        last += 1
    return rates[first], rates[last]


def _losses(runs: Sequence[Run], most: float) -> dict[float, list[float]]:
    found: dict[float, list[float]] = {}
    for run in runs:
        if run.state != "failed":
            loss = math.inf if run.validation_loss is None else run.validation_loss
            found.setdefault(run.trial.rate, []).append(min(loss, most))
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
