"""The verdicts of experiments, judged as one family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from normkit.study.analysis import stats
from normkit.study.analysis.cells import Cell
from normkit.study.analysis.evidence import Finding, Form
from normkit.study.analysis.stats import Interval
from normkit.study.claims.experiment import FORMS, CellName, Experiment, Measured, Tables


@dataclass(frozen=True)
class Shown:
    """The values of one cell that an experiment shows, and the training losses of their runs."""

    name: CellName
    values: tuple[float, ...]
    interval: Interval | None
    losses: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Judgement:
    """An experiment, its effect, and the finding by its rule.

    `wide` is the interval that holds for all experiments at once. `p_corrected` is None if the claim is that there is
    no difference.
    """

    experiment: Experiment
    measured: Measured
    wide: Interval
    p_corrected: float | None
    finding: Finding
    form: Form
    shown: tuple[Shown, ...]


def judged(experiments: Sequence[Experiment], tables: Tables, alpha: float) -> tuple[Judgement, ...]:
    """Judge the experiments that have enough runs.

    Args:
        experiments: the experiments, in the order in which they are shown.
        tables: the cells of each workload.
        alpha: probability of at least one wrong verdict in the whole family.
    """
    found = [
        (experiment, measured)
        for experiment in experiments
        if all((variant, size) in tables.get(workload, {}) for workload, variant, size in experiment.cells)
        and (measured := experiment.effect(tables)) is not None
        and len(measured.values) > 1
    ]
    tested = iter(stats.holm([measured.p_value for experiment, measured in found if not experiment.equivalence]))
    level = stats.family_level(alpha, len(found))
    judgements = []
    for experiment, measured in found:
        p = None if experiment.equivalence else next(tested)
        wide = measured.interval(level)
        judgements.append(
            Judgement(
                experiment=experiment,
                measured=measured,
                wide=wide,
                p_corrected=p,
                finding=experiment.judge(measured, wide, p, alpha),
                form="seconds" if measured.by_median else experiment.form or FORMS[experiment.unit],
                shown=tuple(_shown(experiment, name, tables, measured.by_median) for name in experiment.cells),
            )
        )
    return tuple(judgements)


def _shown(experiment: Experiment, name: CellName, tables: Tables, timed: bool) -> Shown:
    workload, variant, size = name
    cell: Cell = tables[workload][variant, size]
    runs = experiment.runs(cell)
    found = cell.seconds if timed else [experiment.show(cell, run) for run in runs]
    values = tuple(value for value in found if value is not None and math.isfinite(value))
    interval = (stats.median_interval if timed else stats.t_interval)(values) if len(values) > 1 else None
    return Shown(name, values, interval, tuple(run.losses for run in runs))
