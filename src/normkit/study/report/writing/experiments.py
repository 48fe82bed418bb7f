"""Experiments as text, in both languages: the rule, the smallest effect that matters, the names of variants."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from normkit.catalog import Text
from normkit.study.analysis.evidence import Evidence, VariantValues
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.judging import Judgement
from normkit.study.report.writing import formatting
from normkit.study.task.metric import ERROR

_OPTIONS = (
    (r"ghost-(\d+)", r"groups of \1", r"每组 \1 个样本"),
    (r"dropout-([\d.]+)", r"dropout \1", r"dropout \1"),
    (r"(\d+)", r"groups: \1", r"分 \1 组"),
    ("after", "after the ReLU", "在 ReLU 之后"),
    ("last", "normalized classifier", "分类器前再归一化"),
    ("init", "initialized by data", "由数据初始化"),
    ("post", "post-norm", "post-norm"),
    ("qk", "QK-norm", "QK-norm"),
    ("each-step", "statistics for each time step", "每个时间步各有统计量"),
)
"""The options of variants as text: pattern, English, Chinese."""


def evidence(judgements: Iterable[Judgement], command: str) -> tuple[Evidence, ...]:
    """The judgements as evidence, with their texts.

    Args:
        judgements: the judgements, in the order in which they are shown.
        command: the command to which ``--claims ID`` is added to repeat one experiment.
    """
    return tuple(_evidence(judgement, command) for judgement in judgements)


def _evidence(judgement: Judgement, command: str) -> Evidence:
    experiment, measured = judgement.experiment, judgement.measured
    conditions = experiment.conditions or (None,) * len(judgement.shown)
    shown = [
        (label(variant, size, condition), variant, each)
        for each, condition in zip(judgement.shown, conditions, strict=True)
        for _, variant, size in [each.name]
    ]
    return Evidence(
        claim=experiment.claim,
        name=experiment.name,
        question=formatting.both(experiment.question),
        design=formatting.both(experiment.design),
        measure=formatting.both(experiment.measure),
        rule=formatting.both(rule(experiment)),
        unit=experiment.unit,
        smallest=experiment.matters,
        effect=measured.interval(),
        wide=judgement.wide,
        bound=measured.bound,
        p_corrected=judgement.p_corrected,
        finding=judgement.finding,
        form=judgement.form,
        variants=tuple(
            VariantValues(text, variant.partition(":")[0], each.values, each.interval) for text, variant, each in shown
        ),
        curves={text: each.losses for text, _, each in shown},
        repeat=f"{command} --claims {experiment.claim}{' --full' if experiment.extended else ''}",
    )


def rule(experiment: Experiment) -> Text:
    """The rule by which the finding follows from the effect."""
    amounts = {"en": amount(experiment, "en"), "zh": amount(experiment, "zh")}
    if experiment.equivalence == "upper":
        return Text(
            f"Supported if the whole corrected interval is below {amounts['en']}, contradicted if the whole interval "
            "is above it, otherwise not resolved.",
            f"校正后的置信区间整体低于 {amounts['zh']}时，论断成立；整体高于它时，不成立；否则尚无定论。",
        )
    if experiment.equivalence:
        return Text(
            f"Supported if the whole corrected interval is within ±{amounts['en']}, contradicted if the whole interval "
            "is outside, otherwise not resolved.",
            f"校正后的置信区间整体落在 ±{amounts['zh']}以内时，论断成立；整体落在其外时，不成立；否则尚无定论。",
        )
    return Text(
        f"Supported if the effect is at least {amounts['en']} in the claimed direction and p, corrected over all "
        "experiments, is below 0.05. Contradicted if the whole corrected interval is below such an effect. Otherwise "
        "not resolved.",
        f"效应与论断同向、不小于 {amounts['zh']}，且对全部实验校正后的 p 值小于 0.05 时，论断成立；"
        "校正后的置信区间整体低于这一效应时，不成立；否则尚无定论。",
    )


def amount(experiment: Experiment, lang: str) -> str:
    """The smallest effect that matters, with its unit."""
    matters = experiment.matters
    match experiment.unit:
        case "log2 ratio":
            return f"{100 * (2**matters - 1):.0f} %"
        case "log10 ratio":
            return f"{10**matters:.2g}×"
        case "nats":
            return f"{matters:g} nats"
        case "loss" | "share":
            return f"{matters:g}"
    return ERROR.amount(matters, lang)


def label(variant: str, size: int, condition: Text | None = None) -> Text:
    """A variant at a batch size, and under a further condition.

    >>> label("group_norm:8", 16), label("layer_norm", 8, Text("AdamW", "AdamW"))
    ('group norm (groups: 8), batch 16', 'layer norm, batch 8, AdamW')
    """
    name, _, option = variant.partition(":")
    en = f" ({_option(option, 'en')})" if option else ""
    zh = f"（{_option(option, 'zh')}）" if option else ""
    more, more_zh = (f", {condition}", f"，{condition.zh}") if condition else ("", "")
    return Text(
        f"{formatting.inline(name)}{en}, batch {size}{more}",
        f"{formatting.title(name, 'zh')}{zh}，批量 {size}{more_zh}",
    )


def _option(option: str, lang: Literal["en", "zh"]) -> str:
    for pattern, *forms in _OPTIONS:
        if found := re.fullmatch(pattern, option):
            return found.expand(forms[lang == "zh"])
    return option
