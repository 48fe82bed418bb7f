"""Effects that several experiments share: differences of errors, ratios of steps and of times."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from normkit.study.analysis import stats
from normkit.study.analysis.cells import Cell, paired
from normkit.study.analysis.sensitivity import above_best
from normkit.study.claims.experiment import CellName, Measured, Tables
from normkit.study.training.trial import Run, smooth

Effect = Callable[[Tables], Measured | None]
Value = Callable[[Cell, Run], float | None]
Two = tuple[CellName, CellName]
OfRates = Callable[[Cell], dict[int, float]]
"""Cell -> for each tuning seed, a number that its runs at all rates give."""


def test_error(cell: Cell, run: Run) -> float | None:
    """The test error, for experiments that compare errors."""
    return run.test_error


def steps_to_target(cell: Cell, run: Run) -> float | None:
    """Steps until the smoothed loss reaches the target; a run that does not reach it counts with all its steps."""
    design, most = cell.design, cell.design.steps_at(cell.batch_size)
    if run.state != "trained":
        return float(most)
    step = None if cell.target is None else stats.arrival(smooth(run.losses, design.window), design.window, cell.target)
    return float(step or most)


def probed(name: str) -> Value:
    """A further measurement of the trained model, for experiments that compare it."""
    return lambda cell, run: run.probes.get(name)


def difference(more: CellName, less: CellName, value: Value = test_error) -> Effect:
    """`value(more) - value(less)`, seed by seed."""

    def effect(tables: Tables) -> Measured | None:
        a, b = _cell(tables, more), _cell(tables, less)
        values = paired(a, b, lambda run: value(a, run))
        return Measured(values) if len(values) > 1 else None

    return effect


def interaction(first: Two, second: Two, value: Value = test_error) -> Effect:
    """The difference of two differences, seed by seed: that of the `first` two cells minus that of the `second`."""

    def effect(tables: Tables) -> Measured | None:
        cells = [_cell(tables, name) for name in (*first, *second)]
        found = [{r.trial.seed: v for r in c.runs if (v := value(c, r)) is not None} for c in cells]
        return _of_differences(found)

    return effect


def _of_differences(found: Sequence[Mapping[int, float]]) -> Measured | None:
    """(a - b) - (c - d) for each seed that has all four values."""
    a, b, c, d = found
    values = [(a[seed] - b[seed]) - (c[seed] - d[seed]) for seed in a if all(seed in each for each in found)]
    return Measured(values) if len(values) > 1 else None


def level(cell: CellName, value: Value) -> Effect:
    """`value(cell)` itself, seed by seed."""

    def effect(tables: Tables) -> Measured | None:
        a = _cell(tables, cell)
        values = [v for run in a.runs if (v := value(a, run)) is not None]
        return Measured(values) if len(values) > 1 else None

    return effect


def steps(more: CellName, less: CellName) -> Effect:
    """log2 of steps to the target, `more` over `less`, with a bound if some runs did not reach it."""

    def effect(tables: Tables) -> Measured | None:
        a, b = _cell(tables, more), _cell(tables, less)
        shared = {run.trial.seed for run in a.runs} & {run.trial.seed for run in b.runs}
        found = stats.log2_ratios(_arrivals(a, shared), _arrivals(b, shared), a.design.steps_at(a.batch_size))
        return None if found is None else Measured(*found)

    return effect


def times(more: CellName, less: CellName) -> Effect:
    """log2 of the time of a step, `more` over `less`, round by round."""

    def effect(tables: Tables) -> Measured | None:
        a, b = _cell(tables, more), _cell(tables, less)
        if not a.seconds or not b.seconds:
            return None
        return Measured([math.log2(x / y) for x, y in zip(a.seconds, b.seconds, strict=True)], by_median=True)

    return effect


def highest_rates(cell: Cell, target: float) -> dict[int, float]:
    """For each tuning seed, the log10 of the highest rate at which the final loss is below `target`.

    If no rate trains at a seed, the value is half a decade below the lowest rate tried.
    """
    found: dict[int, float] = {}
    lowest = min(run.trial.rate for run in cell.tuning)
    for run in cell.tuning:
        smoothed = smooth(run.losses, cell.design.window)
        trains = run.state == "trained" and bool(smoothed) and smoothed[-1] < target
        before = found.get(run.trial.seed, math.log10(lowest) - 0.5)
        found[run.trial.seed] = max(before, math.log10(run.trial.rate)) if trains else before
    return found


def sensitivity_by_seed(cell: Cell) -> dict[int, float]:
    """For each tuning seed, the learning-rate sensitivity: the mean over the rates of the loss above that of the best.

    A loss above that of the untrained model counts as that one, and so does one that is not finite. Wortsman et al.
    2023, arXiv:2309.14322, section 2.2. `analysis.sensitivity` has that of the report, with the best rate of the means
    over seeds. Here each seed has its own best rate, so that methods can be compared seed by seed; the lowest of
    several losses is too low by chance, which cancels in the difference of methods that are equally noisy.
    """
    return {seed: above_best([*losses.values()], min(losses.values())) for seed, losses in _by_rate(cell).items()}


def decades(cell: Cell, within: float) -> dict[int, float]:
    """For each tuning seed, the log10 of the ratio of the highest to the lowest rate whose loss is near the best.

    Args:
        cell: a cell with a run at every rate on each tuning seed.
        within: the largest loss above the best that is near.
    """
    found: dict[int, float] = {}
    for seed, losses in _by_rate(cell).items():
        near = [math.log10(rate) for rate, loss in losses.items() if loss <= min(losses.values()) + within]
        found[seed] = max(near) - min(near)
    return found


def _by_rate(cell: Cell) -> dict[int, dict[float, float]]:
    """For each tuning seed, the validation loss by rate of the design, at most the first training loss.

    Rates beyond the range are left out: not every method has them.
    """
    found: dict[int, dict[float, float]] = {}
    for run in cell.tuning:
        if run.trial.rate in cell.design.rates and run.losses:
            end = math.inf if run.validation_loss is None else run.validation_loss
            found.setdefault(run.trial.seed, {})[run.trial.rate] = min(end, run.losses[0])
    return {seed: losses for seed, losses in found.items() if len(losses) == len(cell.design.rates)}


def of_rates(more: CellName, less: CellName, value: OfRates) -> Effect:
    """`value(more) - value(less)`, by tuning seed."""

    def effect(tables: Tables) -> Measured | None:
        first, second = value(_cell(tables, more)), value(_cell(tables, less))
        values = [first[seed] - second[seed] for seed in first if seed in second]
        return Measured(values) if len(values) > 1 else None

    return effect


def interaction_of_rates(first: Two, second: Two, value: OfRates) -> Effect:
    """As `interaction`, by tuning seed."""

    def effect(tables: Tables) -> Measured | None:
        return _of_differences([value(_cell(tables, name)) for name in (*first, *second)])

    return effect


def shown_of_rates(value: OfRates) -> Value:
    """The number at the seed of a run."""
    return lambda cell, run: value(cell).get(run.trial.seed)


def _arrivals(cell: Cell, seeds: set[int]) -> Sequence[int | None]:
    return [s for s, run in zip(cell.steps, cell.runs, strict=True) if run.trial.seed in seeds]


def _cell(tables: Tables, name: CellName) -> Cell:
    workload, variant, size = name
    return tables[workload][variant, size]
