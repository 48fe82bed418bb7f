"""What an experiment says of a claim, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from normkit.catalog import Text
from normkit.study.stats import Bound, Interval

Finding = Literal["supported", "contradicted", "not resolved"]
Unit = Literal["points", "log2 ratio", "nats", "log10 ratio", "share"]
Form = Literal["share", "steps", "rate", "seconds", "number"]
"""What the values of an arm are: a fraction, training steps, a learning rate, a time, or anything else."""


@dataclass(frozen=True)
class ArmValues:
    """What one arm of an experiment reached, seed by seed."""

    label: Text
    method: str
    values: tuple[float, ...]
    interval: Interval | None


@dataclass(frozen=True)
class Evidence:
    """One experiment, and what came of it.

    Attributes:
        claim, name: the id in the catalog, and which experiment of that claim.
        question, design, measure, rule: stated before the result.
        unit: of the effect, which is positive if the claim holds.
        smallest: the smallest effect that matters.
        effect, wide: with the interval of 95 %, and with that which holds for all experiments at once.
        bound: whether the estimate is one-sided, because some runs never arrived; "unknown" if runs of both arms.
        p_corrected: over all experiments of the suite; None where the claim is that there is no difference.
        finding: by the rule.
        form: what the values of the arms are.
        arms: what lies behind the effect.
        curves: training losses of each arm, seed by seed.
        repeat: the command.
    """

    claim: str
    name: str
    question: Text
    design: Text
    measure: Text
    rule: Text
    unit: Unit
    smallest: float
    effect: Interval
    wide: Interval
    bound: Bound
    p_corrected: float | None
    finding: Finding
    form: Form
    arms: tuple[ArmValues, ...]
    curves: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    repeat: str = ""
