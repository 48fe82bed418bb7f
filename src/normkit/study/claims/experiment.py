"""What an experiment on a claim is: texts and a rule that stand before the result, and where the result is read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from normkit.catalog import Text
from normkit.study import stats
from normkit.study.evidence import ArmValues, Evidence, Finding, Form, Unit
from normkit.study.metric import ERROR
from normkit.study.run import Run
from normkit.study.stats import Bound, Interval
from normkit.study.verdict import Cell, Table

Tables = Mapping[str, Table]
Arm = tuple[str, str, int]
"""Bench, arm and batch size."""

SMALLEST: dict[Unit, float] = {
    "points": 0.01,
    "log2 ratio": math.log2(1.1),
    "nats": 0.05,
    "log10 ratio": 0.5,
    "share": 0.01,
}
"""The smallest effect that matters: a point of error, a tenth more steps or time, 0.05 nats of loss, half a decade."""

FORMS: dict[Unit, Form] = {
    "points": "share",
    "log2 ratio": "steps",
    "nats": "number",
    "log10 ratio": "rate",
    "share": "number",
}
"""What the arms of an experiment show, by the unit of its effect; where that is one of times, they show times."""

_OPTIONS = (
    (r"ghost-(\d+)", r"groups of \1", r"每组 \1 个样本"),
    (r"dropout-([\d.]+)", r"dropout \1", r"dropout \1"),
    (r"(\d+)", r"groups: \1", r"\1 组"),
    ("after", "behind the ReLU", "在 ReLU 之后"),
    ("last", "normalized classifier", "分类器前再归一化"),
    ("init", "started from data", "按数据初始化"),
    ("each-step", "statistics for each time step", "每个时间步各有统计量"),
)
"""The options of arms in words: pattern, English, Chinese."""


@dataclass(frozen=True)
class Measured:
    """An effect, seed by seed (of times: round by round); positive if the claim holds.

    `p` stands for the t test where the experiment has a test of its own. With `paired` False the values are of one
    arm and not differences.
    """

    values: Sequence[float]
    bound: Bound = "exact"
    p: float | None = None
    by_median: bool = False

    def interval(self, level: float = 0.95) -> Interval:
        """Where the true effect lies."""
        return (stats.median_interval if self.by_median else stats.t_interval)(self.values, level)

    @property
    def p_value(self) -> float:
        """Of no effect at all."""
        if self.p is not None:
            return self.p
        return (stats.sign_test if self.by_median else stats.t_test)(self.values)


@dataclass(frozen=True)
class Experiment:
    """One measurement that speaks to one claim.

    Attributes:
        claim: id in the catalog.
        name: tells it from others on the same claim.
        question, design, measure: in words, before the result.
        unit: of the effect.
        effect: reads it from the runs; None where too few are there.
        arms: what to show beside it: (bench, arm, batch size).
        show: the value of a run that is shown of an arm.
        smallest: the smallest effect that matters; by default that of the unit.
        equivalence: the claim is that there is no difference, or ("upper") none that is positive: the effect is that
            difference, and the claim is supported if it is surely below the smallest that matters.
        of_tuning: it reads the runs over learning rates and not those behind results.
        extended: whether it belongs to the full suite only.
    """

    claim: str
    name: str
    question: Text
    design: Text
    measure: Text
    unit: Unit
    effect: Callable[[Tables], Measured | None]
    arms: tuple[Arm, ...]
    show: Callable[[Cell, Run], float | None]
    smallest: float | None = None
    equivalence: Literal[False, True, "upper"] = False
    of_tuning: bool = False
    extended: bool = False

    @property
    def benches(self) -> tuple[str, ...]:
        """The benches whose runs it reads."""
        return tuple(dict.fromkeys(bench for bench, _, _ in self.arms))

    @property
    def matters(self) -> float:
        """The smallest effect that matters."""
        return SMALLEST[self.unit] if self.smallest is None else self.smallest

    @property
    def rule(self) -> Text:
        """How the verdict is found."""
        if self.equivalence == "upper":
            return Text(
                f"Supported if the simultaneous interval lies below {self._amount('en')}; contradicted if it lies above; "
                "otherwise not resolved.",
                f"若联合置信区间完全低于 {self._amount('zh')} 则成立；完全高于则不成立；否则未定。",
            )
        if self.equivalence:
            return Text(
                f"Supported if the simultaneous interval lies within ±{self._amount('en')}; contradicted if it lies "
                "outside; otherwise not resolved.",
                f"若联合置信区间完全落在 ±{self._amount('zh')} 之内则成立；完全落在其外则不成立；否则未定。",
            )
        return Text(
            f"Supported if p, corrected over all experiments, is below 0.05 and the effect is at least "
            f"{self._amount('en')} in the claimed direction; contradicted if the simultaneous interval excludes any "
            "such effect; otherwise not resolved.",
            f"若对全部实验校正后的 p 小于 0.05，且沿论断方向的效应不小于 {self._amount('zh')}，则成立；"
            "若联合置信区间排除这样大的效应则不成立；否则未定。",
        )

    def _amount(self, lang: Literal["en", "zh"]) -> str:
        if self.unit == "log2 ratio":
            return f"{100 * (2**self.matters - 1):.0f} %"
        if self.unit == "log10 ratio":
            return f"{10**self.matters:.2g}×"
        if self.unit == "nats":
            return f"{self.matters:g} nats" if lang == "en" else f"{self.matters:g} 奈特"
        if self.unit == "share":
            return f"{self.matters:g}"
        return ERROR.amount(self.matters, lang)

    def judge(self, measured: Measured, wide: Interval, p_corrected: float | None, alpha: float) -> Finding:
        """The rule, carried out. A one-sided estimate can only speak for the side it is sure of."""
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


def judged(experiments: Sequence[Experiment], tables: Tables, alpha: float, command: str = "") -> tuple[Evidence, ...]:
    """The verdicts of all experiments, as one family.

    Args:
        experiments: in the order in which they are shown.
        tables: the runs of each bench by its name.
        alpha: chance of one wrong verdict in the whole family.
        command: to which ``--claims ID`` is added to repeat one experiment.
    """
    found = [
        (experiment, measured)
        for experiment in experiments
        if all((arm, size) in tables.get(bench, {}) for bench, arm, size in experiment.arms)
        and (measured := experiment.effect(tables)) is not None
        and len(measured.values) > 1
    ]
    tested = stats.holm([measured.p_value for experiment, measured in found if not experiment.equivalence])
    ps = iter(tested)
    corrected = [None if experiment.equivalence else next(ps) for experiment, _ in found]
    level = stats.family_level(alpha, len(found))
    evidence = []
    for (experiment, measured), p in zip(found, corrected, strict=True):
        wide = measured.interval(level)
        cells = [(arm, size, tables[bench][arm, size]) for bench, arm, size in experiment.arms]
        evidence.append(
            Evidence(
                claim=experiment.claim,
                name=experiment.name,
                question=experiment.question,
                design=experiment.design,
                measure=experiment.measure,
                rule=experiment.rule,
                unit=experiment.unit,
                smallest=experiment.matters,
                effect=measured.interval(),
                wide=wide,
                bound=measured.bound,
                p_corrected=p,
                finding=experiment.judge(measured, wide, p, alpha),
                form="seconds" if measured.by_median else FORMS[experiment.unit],
                arms=tuple(_arm(experiment, arm, size, cell, measured.by_median) for arm, size, cell in cells),
                curves={
                    _label(arm, size): tuple(run.losses for run in _shown(experiment, cell))
                    for arm, size, cell in cells
                },
                repeat=f"{command} --claims {experiment.claim}",
            )
        )
    return tuple(evidence)


def _shown(experiment: Experiment, cell: Cell) -> Sequence[Run]:
    """The runs of an arm that stand for it: one for each seed."""
    if not experiment.of_tuning:
        return cell.runs
    return [run for run in cell.tuning if run.job.rate == cell.rate]


def _arm(experiment: Experiment, arm: str, size: int, cell: Cell, timed: bool) -> ArmValues:
    found = cell.seconds if timed else [experiment.show(cell, run) for run in _shown(experiment, cell)]
    values = tuple(v for v in found if v is not None and math.isfinite(v))
    interval = (stats.median_interval if timed else stats.t_interval)(values) if len(values) > 1 else None
    return ArmValues(_label(arm, size), arm.partition(":")[0], values, interval)


def _label(arm: str, size: int) -> Text:
    from normkit.study import words

    name, _, option = arm.partition(":")
    en = f" ({_option(option, 'en')})" if option else ""
    zh = f"（{_option(option, 'zh')}）" if option else ""
    return Text(f"{words.inline(name)}{en}, batch {size}", f"{words.title(name, 'zh')}{zh}，批量 {size}")


def _option(option: str, lang: Literal["en", "zh"]) -> str:
    for pattern, *forms in _OPTIONS:
        if found := re.fullmatch(pattern, option):
            return found.expand(forms[lang == "zh"])
    return option
