"""Chooses learning rates and options, by validation data or by training losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from normkit.study.training import rates
from normkit.study.training.design import Design
from normkit.study.training.rates import Curve
from normkit.study.training.trial import Options, Run, Setting, Trial

RIVALS = 2
"""The largest number of further rates at which a difference is confirmed, besides the rate of the better method."""


class Tuned(NamedTuple):
    """The tuning of a method at a batch size: its runs, the curve over rates, and the chosen setting."""

    runs: tuple[Run, ...]
    curve: Curve | None
    setting: Setting | None


def tuned(design: Design, runs: Mapping[Trial, Run], batch_size: int) -> dict[str, Tuned]:
    """The tuning of every method at a batch size.

    Each method gets the best rate by the fit through its runs. If the design confirms differences, a method whose
    best rate cannot be told apart from the common rate gets the common one, at which the mean over methods is lowest.
    """
    at_rates = {method: _at_rates(design, runs, method, batch_size) for method in design.methods}
    curves = {method: curve(design, found) for method, found in at_rates.items()}
    known = [found for found in curves.values() if found is not None]
    common = rates.common_rate(known) if design.confirm else None
    return {
        method: _with_options(design, runs, (method, batch_size), at_rates[method], curves[method], common)
        for method in design.methods
    }


def curve(design: Design, tuning: Sequence[Run]) -> Curve | None:
    """The curve of tuning runs without options over rates; None before tuning."""
    values: dict[float, list[float]] = {}
    losses: dict[float, list[float]] = {}
    for run in tuning:
        value = _value(design, run)
        if value is not None and not run.trial.options:
            values.setdefault(run.trial.rate, []).append(value)
            losses.setdefault(run.trial.rate, []).append(
                math.inf if run.validation_loss is None else run.validation_loss
            )
    most = max(map(len, values.values()), default=0)
    complete = {rate: found for rate, found in values.items() if len(found) == most}
    return rates.fit(complete, {rate: _mean(losses[rate]) for rate in complete})


def rivals(found: Curve | None, setting: Setting) -> tuple[Setting, ...]:
    """The settings that tuning cannot exclude as the best ones, besides the chosen one; the likeliest first."""
    others = [rate for rate in found.ties if rate != setting[0]] if found else []
    return tuple((rate, setting[1]) for rate in others[:RIVALS])


def pick(runs: Mapping[Trial, Run], trials: Sequence[Trial]) -> tuple[Run, ...]:
    """The runs of these trials, as far as they exist."""
    return tuple(runs[trial] for trial in trials if trial in runs)


def _at_rates(design: Design, runs: Mapping[Trial, Run], method: str, batch_size: int) -> tuple[Run, ...]:
    return pick(
        runs,
        [
            Trial("tune", method, batch_size, rate, seed)
            for seed in design.tuning_seeds
            for rate in design.wide_rates
        ],
    )


def _with_options(
    design: Design,
    runs: Mapping[Trial, Run],
    where: tuple[str, int],
    at_rates: tuple[Run, ...],
    found: Curve | None,
    common: float | None,
) -> Tuned:
    """The tuning of one method: its rate, and the options that are best at this rate."""
    if found is None:
        return Tuned(at_rates, None, None)
    rate = common if common is not None and common in found.ties else found.rates[found.best]
    others = pick(
        runs,
        [Trial("tune", *where, rate, seed, options) for options in design.options for seed in design.tuning_seeds],
    )
    tried: dict[Options, list[float]] = {}
    for run in (*at_rates, *others):
        value = _value(design, run)
        if run.trial.rate == rate and value is not None:
            tried.setdefault(run.trial.options, []).append(value)
    most = max(map(len, tried.values()))
    # The defaults come first, so that they win if no option is better.
    best = min((options for options, values in tried.items() if len(values) == most), key=lambda o: _mean(tried[o]))
    return Tuned(at_rates + others, found, (rate, best))


def _value(design: Design, run: Run) -> float | None:
    """The value of a run by which rates are compared: lower is better."""
    if run.validation_error is None:
        return None
    if design.choose == "training":
        broke = run.state == "untrained" and run.validation_loss is None
        return math.inf if broke else _mean(run.losses)
    return design.sign * run.validation_error


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.inf
