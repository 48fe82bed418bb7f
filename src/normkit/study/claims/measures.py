"""Effects that several experiments share: differences of errors, ratios of steps and of times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from normkit.study.analysis import stats
from normkit.study.analysis.cells import Cell, paired
from normkit.study.claims.experiment import CellName, Measured, Tables
from normkit.study.training.trial import Run, smooth

Effect = Callable[[Tables], Measured | None]
Value = Callable[[Cell, Run], float | None]


def test_error(cell: Cell, run: Run) -> float | None:
    """The test error, for experiments that compare errors."""
    return run.test_error


def steps_to_target(cell: Cell, run: Run) -> float | None:
    """Steps until the smoothed loss reaches the target; a run that does not reach it counts with all its steps."""
    design = cell.design
    if run.state != "trained":
        return float(design.steps)
    step = stats.arrival(smooth(run.losses, design.window), design.window, design.target_loss)
    return float(step or design.steps)


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
        found = stats.log2_ratios(_arrivals(a, shared), _arrivals(b, shared), a.design.steps)
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


def _arrivals(cell: Cell, seeds: set[int]) -> Sequence[int | None]:
    return [s for s, run in zip(cell.steps, cell.runs, strict=True) if run.trial.seed in seeds]


def _cell(tables: Tables, name: CellName) -> Cell:
    workload, variant, size = name
    return tables[workload][variant, size]
