"""Cells: all measurements of one method at one batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import NamedTuple

from normkit.study.analysis import stats
from normkit.study.analysis.sensitivity import Sensitivity, good_rates, sensitivity
from normkit.study.analysis.stats import Interval
from normkit.study.training import tuning
from normkit.study.training.design import Design
from normkit.study.training.rates import Curve
from normkit.study.training.trial import Options, Run, Setting, Trial, smooth
from normkit.study.training.tuning import pick, tuned

Key = tuple[str, int]
"""Method and batch size."""
Table = Mapping[Key, "Cell"]


class RatePoint(NamedTuple):
    """Validation errors at a rate, one for each tuning seed; if `stopped`, after the first steps only."""

    rate: float
    errors: tuple[float, ...]
    stopped: bool


@dataclass(frozen=True)
class Cell:
    """All measurements of one method at one batch size.

    `tuning` has the runs over learning rates, `runs` those of the results in the order of the seeds; `seconds` and
    `plain_seconds` are step times, round by round, of the method and of no norm; `saved_bytes` is the memory that one
    training step saves for its backward pass. `setting` is the chosen rate with options, None before tuning; `rivals`
    are further settings that tuning cannot exclude as the best ones. `others` are runs of evaluation seeds at other
    rates, by which differences are confirmed; `short` are the short runs by which rates were discarded. `halfway` is a
    training loss between start and end, if the design names none that a run should reach.
    """

    method: str
    batch_size: int
    design: Design
    tuning: tuple[Run, ...]
    runs: tuple[Run, ...]
    seconds: tuple[float, ...] = ()
    plain_seconds: tuple[float, ...] = ()
    saved_bytes: int | None = None
    setting: Setting | None = None
    rivals: tuple[Setting, ...] = ()
    others: tuple[Run, ...] = ()
    short: tuple[Run, ...] = ()
    halfway: float | None = None

    @property
    def target(self) -> float | None:
        """The training loss that a run should reach; None if no method learned anything."""
        return self.halfway if self.design.target_loss is None else self.design.target_loss

    @property
    def rate(self) -> float | None:
        """The chosen learning rate; None before tuning."""
        return self.setting[0] if self.setting else None

    @property
    def options(self) -> Options:
        """The chosen options of the optimizer."""
        return self.setting[1] if self.setting else ()

    @cached_property
    def curve(self) -> Curve | None:
        """The metric that chose the rate over all rates, lower is better; None before tuning."""
        return tuning.curve(self.design, self.tuning)

    @cached_property
    def sensitivity(self) -> Sensitivity | None:
        """How much the loss depends on the learning rate."""
        starts = [run.losses[0] for run in self.runs if run.losses]
        untrained = math.fsum(starts) / len(starts) if starts else math.inf
        return sensitivity(self.design.rates, self.tuning, self.short, untrained) if starts else None

    @property
    def good_rates(self) -> tuple[float, float] | None:
        """The range of rates around the best one whose errors are worse by less than what matters."""
        found = self.curve
        if found is None or self.design.choose == "training":
            return None
        return good_rates(dict(zip(found.rates, found.means, strict=True)), self.design.smallest)

    @property
    def rate_curve(self) -> tuple[RatePoint, ...]:
        """The validation error at each rate that was tried, in ascending order of the rates."""
        points: dict[float, RatePoint] = {}
        for stopped, runs in ((True, self.short), (False, self.tuning)):
            errors: dict[float, list[float]] = {}
            for run in runs:
                if run.validation_error is not None and not run.trial.options:
                    errors.setdefault(run.trial.rate, []).append(run.validation_error)
            points |= {rate: RatePoint(rate, tuple(found), stopped) for rate, found in errors.items()}
        return tuple(points[rate] for rate in sorted(points))

    def at(self, setting: Setting | None) -> tuple[Run, ...]:
        """The runs of evaluation seeds at a setting."""
        return tuple(run for run in (*self.runs, *self.others) if run.trial.setting == setting)

    @property
    def rate_on_edge(self) -> bool:
        """Whether the best rate may be outside the range that was tried."""
        tried = [run.trial.rate for run in (*self.tuning, *self.short)]
        return bool(tried) and self.rate in (min(tried), max(tried))

    @property
    def error(self) -> Interval | None:
        """Test error."""
        return self._mean(lambda run: run.test_error)

    @property
    def train_error(self) -> Interval | None:
        """Error on the training images, in evaluation mode."""
        return self._mean(lambda run: run.train_error)

    @property
    def recalibrated_error(self) -> Interval | None:
        """Test error with recalibrated running statistics; None without running statistics."""
        return self._mean(lambda run: run.recalibrated_error)

    @property
    def gap(self) -> Interval | None:
        """Loss in evaluation mode minus loss in training mode."""
        return self._mean(lambda run: run.gap)

    @property
    def steps(self) -> tuple[int | None, ...]:
        """Steps to the target loss of each run; None if it did not reach it. Empty if there is no target."""
        window, target = self.design.window, self.target
        if target is None:
            return ()
        return tuple(
            stats.arrival(smooth(run.losses, window), window, target) if run.state == "trained" else None
            for run in self.runs
        )

    @property
    def median_steps(self) -> tuple[float, bool] | None:
        """Median of `steps`, and whether it is a lower bound."""
        return stats.median_steps(self.steps, self.design.steps_at(self.batch_size))

    @property
    def time_ratio(self) -> Interval | None:
        """Time of a step relative to no norm, median over rounds."""
        if not self.seconds or not self.plain_seconds:
            return None
        return stats.median_interval([a / b for a, b in zip(self.seconds, self.plain_seconds, strict=True)])

    @property
    def untrained(self) -> int:
        """The number of runs that did not train; they are included in every mean."""
        return sum(run.state == "untrained" for run in self.runs)

    def _mean(self, value: Callable[[Run], float | None]) -> Interval | None:
        values = [v for v in map(value, self.runs) if v is not None]
        return stats.t_interval(values) if len(values) > 1 else None


def cells(
    design: Design,
    runs: Mapping[Trial, Run],
    times: Mapping[int, Mapping[str, Sequence[float]]],
    seeds: int | None = None,
) -> dict[Key, Cell]:
    """Runs and times by method and batch size; those that are not in the design are left out.

    Args:
        design: the design.
        runs: all runs.
        times: seconds of steps by batch size and method.
        seeds: the largest number of evaluation seeds, if it is not that of the design.
    """
    found: dict[Key, Cell] = {}
    last = design.seeds_of(design.seeds if seeds is None else seeds)
    known = set(last)
    other: dict[Key, list[Run]] = {}
    short: dict[Key, list[Run]] = {}
    for trial, run in runs.items():
        if trial.kind == "measure" and trial.seed in known:
            other.setdefault((trial.method, trial.batch_size), []).append(run)
        elif trial.part < 1:
            short.setdefault((trial.method, trial.batch_size), []).append(run)
    for batch_size in design.batch_sizes:
        seconds = times.get(batch_size, {})
        at_size: dict[Key, Cell] = {}
        for method, (tried, _, setting, rivals) in tuned(design, runs, batch_size).items():
            key = method, batch_size
            trials = [Trial("measure", *key, setting[0], seed, setting[1]) for seed in last] if setting else []
            at_size[key] = Cell(
                method,
                batch_size,
                design,
                tried,
                pick(runs, trials),
                tuple(seconds.get(method, ())),
                tuple(seconds.get("none", ())),
                setting=setting,
                rivals=rivals,
                others=tuple(
                    run for run in other.get(key, ()) if design.confirm and setting and run.trial.setting != setting
                ),
                short=tuple(run for run in short.get(key, ()) if run.trial.rate in design.rates),
            )
        halfway = _halfway(design, list(at_size.values())) if design.target_loss is None else None
        found |= {key: replace(cell, halfway=halfway) for key, cell in at_size.items()}
    return found


def _halfway(design: Design, found: Sequence[Cell]) -> float | None:
    """A training loss that suits losses of any scale, for the cells of a batch size.

    It is halfway from the mean loss of the first step to the lowest mean loss of a method in the last steps. None if no
    method learned anything.
    """
    starts = [run.losses[0] for cell in found for run in cell.runs if run.losses and math.isfinite(run.losses[0])]
    ends = [
        fmean(fmean(run.losses[-design.window :]) for run in cell.runs)
        for cell in found
        if cell.runs and all(run.losses and not run.broke and run.state != "failed" for run in cell.runs)
    ]
    if not starts or not ends or min(ends) >= (start := fmean(starts)):
        return None
    return float(f"{(start + min(ends)) / 2:.3g}")


def paired(a: Cell, b: Cell, value: Callable[[Run], float | None]) -> list[float]:
    """`value(a) - value(b)` for every seed that both cells have."""
    other = {run.trial.seed: value(run) for run in b.runs}
    found = []
    for run in a.runs:
        mine, theirs = value(run), other.get(run.trial.seed)
        if mine is not None and theirs is not None:
            found.append(mine - theirs)
    return found
