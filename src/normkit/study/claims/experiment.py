"""An experiment on a claim: its texts and its rule, fixed before the result, and the cells of its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from normkit.catalog import Text
from normkit.study.analysis import stats
from normkit.study.analysis.cells import Cell, Table
from normkit.study.analysis.evidence import Finding, Form, Unit
from normkit.study.analysis.stats import Bound, Interval
from normkit.study.training.trial import Run

Tables = Mapping[str, Table]
"""The cells of each workload, by its name."""
CellName = tuple[str, str, int]
"""Workload, variant and batch size: the place of a cell in the tables."""
Equivalence = Literal[False, True, "upper"]

SMALLEST: dict[Unit, float] = {
    "points": 0.01,
    "log2 ratio": math.log2(1.1),
    "nats": 0.05,
    "log10 ratio": 0.5,
    "loss": 0.05,
    "share": 0.01,
}
"""The smallest effect that matters: a point of error, a tenth more steps or time, 0.05 of loss, half a decade."""

FORMS: dict[Unit, Form] = {
    "points": "share",
    "log2 ratio": "steps",
    "nats": "number",
    "log10 ratio": "rate",
    "loss": "number",
    "share": "number",
}
"""The kind of the values that are shown, by the unit of the effect; an effect on times shows times."""


@dataclass(frozen=True)
class Measured:
    """An effect, seed by seed (for times: round by round); positive if the claim holds.

    `p` replaces that of the t test if the experiment has another test.
    """

    values: Sequence[float]
    bound: Bound = "exact"
    p: float | None = None
    by_median: bool = False

    def interval(self, level: float = 0.95) -> Interval:
        """The interval of the true effect."""
        return (stats.median_interval if self.by_median else stats.t_interval)(self.values, level)

    @property
    def p_value(self) -> float:
        """The p value of no effect."""
        if self.p is not None:
            return self.p
        return (stats.sign_test if self.by_median else stats.t_test)(self.values)


@dataclass(frozen=True)
class Experiment:
    """One measurement that is evidence for or against a claim.

    Attributes:
        claim: id in the catalog.
        name: distinguishes it from others on the same claim.
        question, design, measure: texts, fixed before the result.
        unit: unit of the effect.
        effect: computes it from the cells; None if there are too few runs.
        cells: the cells to show with it.
        show: the value to show for a run.
        smallest: the smallest effect that matters; by default that of the unit.
        equivalence: whether the claim is that there is no difference, or ("upper") no positive one. Then the effect is
            that difference, and the claim is supported if its interval is below the smallest effect that matters.
        form: the kind of the values that are shown, if not that of the unit.
        of_tuning: whether it uses the runs over learning rates instead of those of the results.
        extended: whether it belongs to the full suite only.
        conditions: what tells its cells apart, one text each, if variant and batch size do not.
    """

    claim: str
    name: str
    question: Text
    design: Text
    measure: Text
    unit: Unit
    effect: Callable[[Tables], Measured | None]
    cells: tuple[CellName, ...]
    show: Callable[[Cell, Run], float | None]
    smallest: float | None = None
    equivalence: Equivalence = False
    form: Form | None = None
    of_tuning: bool = False
    extended: bool = False
    conditions: tuple[Text, ...] = ()

    @property
    def workloads(self) -> tuple[str, ...]:
        """The workloads whose runs it uses."""
        return tuple(dict.fromkeys(workload for workload, _, _ in self.cells))

    @property
    def matters(self) -> float:
        """The smallest effect that matters."""
        return SMALLEST[self.unit] if self.smallest is None else self.smallest

    def judge(self, measured: Measured, wide: Interval, p_corrected: float | None, alpha: float) -> Finding:
        """The finding by the rule. A one-sided estimate can decide only about the side that it bounds."""
        if self.equivalence:
            lowest = -math.inf if self.equivalence == "upper" else -self.matters
            if lowest <= wide.low and wide.high <= self.matters:
                return "supported"
            outside = wide.low > self.matters or wide.high < lowest
            return "contradicted" if outside else "not resolved"
        sure = p_corrected is not None and p_corrected < alpha
        if sure and measured.bound in ("exact", "at least") and measured.interval().value >= self.matters:
            return "supported"
        if measured.bound in ("exact", "at most") and wide.high < self.matters:
            return "contradicted"
        return "not resolved"

    def runs(self, cell: Cell) -> Sequence[Run]:
        """The runs of a cell that it uses: one for each seed."""
        if not self.of_tuning:
            return cell.runs
        return [run for run in cell.tuning if run.trial.rate == cell.rate]
