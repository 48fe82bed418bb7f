"""Chooses a learning rate and options, by validation data or by training losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from normkit.study.training.design import Design
from normkit.study.training.trial import Options, Run, Setting, Trial


def ranking(
    tuning: Sequence[Run], by: Literal["validation", "training"] = "validation", sign: int = 1
) -> list[Setting]:
    """Learning rates with options, the best first.

    They are ordered by mean validation error, with `sign` -1 the highest one first; ties are broken by mean validation
    loss, then by the lower rate. Or they are ordered by the mean training loss over all steps, in which a run whose
    loss became infinite or NaN comes last.
    """
    tried: dict[Setting, list[Run]] = {}
    for run in tuning:
        if run.validation_error is not None:
            tried.setdefault(run.trial.setting, []).append(run)
    most = max(map(len, tried.values()), default=0)

    def order(setting: Setting) -> tuple[float, float, float]:
        runs = tried[setting]
        if by == "training":
            return _mean([_area(run) for run in runs]), 0.0, setting[0]
        losses = [math.inf if run.validation_loss is None else run.validation_loss for run in runs]
        return sign * _mean([run.validation_error or 0.0 for run in runs]), _mean(losses), setting[0]

    return sorted((setting for setting, runs in tried.items() if len(runs) == most), key=order)


def tuning_runs(design: Design, runs: Mapping[Trial, Run], method: str, batch_size: int) -> tuple[Run, ...]:
    """The runs that determine the setting of a method at a batch size: all rates, and options at the best rate."""

    def of(rate: float, seed: int, options: Options = ()) -> Trial:
        return Trial("tune", method, batch_size, rate, seed, options)

    at_rates = pick(runs, [of(rate, seed) for seed in design.tuning_seeds for rate in design.wide_rates])
    best = ranking(at_rates, design.choose, design.sign)[:1]
    settings = [(rate, options) for rate, _ in best for options in design.options]
    return at_rates + pick(runs, [of(rate, seed, given) for rate, given in settings for seed in design.tuning_seeds])


def chosen(design: Design, tuning: Sequence[Run]) -> Setting | None:
    """The best setting; None before tuning."""
    return next(iter(ranking(tuning, design.choose, design.sign)), None)


def pick(runs: Mapping[Trial, Run], trials: Sequence[Trial]) -> tuple[Run, ...]:
    """The runs of these trials, as far as they exist."""
    return tuple(runs[trial] for trial in trials if trial in runs)


def _area(run: Run) -> float:
    """The mean training loss of a run; infinite if it became infinite or NaN."""
    return math.inf if run.state == "untrained" and run.validation_loss is None else _mean(run.losses)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.inf
