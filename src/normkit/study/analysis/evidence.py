"""The result of an experiment on a claim, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from normkit.catalog import Text
from normkit.study.analysis.stats import Bound, Interval

Finding = Literal["supported", "contradicted", "not resolved"]
Unit = Literal["points", "log2 ratio", "nats", "log10 ratio", "loss", "share"]
"""A cross entropy is in nats, a loss of another kind has no unit."""
Form = Literal["share", "steps", "rate", "seconds", "number"]
"""The kind of the values of a variant: a fraction, training steps, a learning rate, a time, or another number."""


@dataclass(frozen=True)
class VariantValues:
    """The values of one variant in an experiment, seed by seed."""

    label: Text
    method: str
    values: tuple[float, ...]
    interval: Interval | None


@dataclass(frozen=True)
class Evidence:
    """One experiment and its result.

    Attributes:
        claim, name: the id in the catalog, and the name of the experiment.
        question, design, measure, rule: fixed before the result.
        unit: unit of the effect, which is positive if the claim holds.
        smallest: the smallest effect that matters.
        effect, wide: the effect with its 95 % interval, and with the interval that holds for all experiments at once.
        bound: whether the estimate is one-sided, because some runs did not reach the target; "unknown" if runs of both
            variants did not.
        p_corrected: p corrected over all experiments of the suite; None if the claim is that there is no difference.
        finding: the finding by the rule.
        form: the kind of the values.
        variants: the values from which the effect was computed, and others for comparison.
        curves: training losses by the label of the variant, seed by seed.
        repeat: the command that repeats the experiment.
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
    variants: tuple[VariantValues, ...]
    curves: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    repeat: str = ""
