"""Chooses learning rates and options, by validation data or by training losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

from normkit.study.training import rates
from normkit.study.training.design import FIRST_PART, Design
from normkit.study.training.rates import Curve, common_rate, curve_of
from normkit.study.training.trial import Options, Run, Setting, Trial

MOST_RIVALS = 2
"""The largest number of further rates at which a difference is confirmed, besides the rate of the better method."""


class Tuned(NamedTuple):
    """The tuning of a method at a batch size.

    `runs` are its runs, `curve` the means over rates, `setting` the chosen rate with options, and `rivals` further
    settings that tuning cannot exclude as the best ones, the likeliest first.
    """

    runs: tuple[Run, ...]
    curve: Curve | None
    setting: Setting | None
    rivals: tuple[Setting, ...] = ()


def tuned(design: Design, runs: Mapping[Trial, Run], batch_size: int) -> dict[str, Tuned]:
    """The tuning of every method at a batch size.

    Each method gets the rate with the lowest mean. If the design confirms differences, a method gets the common rate
    instead, at which the mean over methods is lowest, if its runs cannot tell this rate from its own best one and the
    common rate is no higher.
    """
    at_rates = {method: _at_rates(design, runs, method, batch_size) for method in design.methods}
    curves = {method: curve(design, found) for method, found in at_rates.items()}
    known = [found for found in curves.values() if found is not None]
    if design.confirm and known:
        # Few runs often have a spread that is too small by chance.
        least = median(found.error for found in known)
        curves = {m: found and replace(found, error=max(found.error, least)) for m, found in curves.items()}
        known = [found for found in curves.values() if found is not None]
    common = common_rate(known) if design.confirm else None
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
    return curve_of(complete, {rate: _mean(losses[rate]) for rate in complete})


def early_losses(design: Design, runs: Mapping[Trial, Run], method: str, batch_size: int) -> dict[float, float]:
    """For each rate the mean training loss in the second half of the short runs; infinite if one broke."""
    half = max(1, round(design.steps_at(batch_size) * FIRST_PART / 2))
    found: dict[float, float] = {}
    for rate in design.rates:
        trials = [Trial("tune", method, batch_size, rate, seed, part=FIRST_PART) for seed in design.tuning_seeds]
        short = [run for run in pick(runs, trials) if run.state != "failed"]
        if short:
            broke = any(run.broke for run in short)
            found[rate] = math.inf if broke else _mean([_mean(run.losses[-half:]) for run in short])
    return found


def pick(runs: Mapping[Trial, Run], trials: Sequence[Trial]) -> tuple[Run, ...]:
    """The runs of these trials, as far as they exist."""
    return tuple(runs[trial] for trial in trials if trial in runs)


def _at_rates(design: Design, runs: Mapping[Trial, Run], method: str, batch_size: int) -> tuple[Run, ...]:
    rates_and_seeds = [(rate, seed) for seed in design.tuning_seeds for rate in design.wide_rates]
    return pick(runs, [Trial("tune", method, batch_size, *each) for each in rates_and_seeds])


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
    rate = common if common is not None and found.takes(common) else found.rates[found.best]
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
    rivals = [(other, best) for other in found.within(rates.RIVALS) if other != rate] if design.confirm else []
    return Tuned(at_rates + others, found, (rate, best), tuple(rivals[:MOST_RIVALS]))


def _value(design: Design, run: Run) -> float | None:
    """The value of a run by which rates are compared: lower is better."""
    if run.validation_error is None:
        return None
    if design.choose == "training":
        return math.inf if run.broke else _mean(run.losses)
    return design.sign * run.validation_error


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.inf
