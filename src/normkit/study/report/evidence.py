"""The claims and the experiments on them, ready for the template."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from normkit import catalog
from normkit.study import words
from normkit.study.comparison import Comparison
from normkit.study.evidence import Evidence
from normkit.study.report import methods, small
from normkit.study.report.texts import say
from normkit.study.stats import Interval


def claims(found: Comparison, lang: str) -> list[dict[str, Any]]:
    """Every claim that was measured, in the order of the catalog."""
    shown = []
    for claim, text in catalog.CLAIMS.items():
        evidence = [e for e in found.evidence if e.claim == claim]
        if evidence:
            shown.append(
                {
                    "id": claim,
                    "text": _sentence(text.to(lang)),
                    "badge": methods.badge(evidence, lang),
                    "experiments": [experiment(found, e, lang) for e in evidence],
                }
            )
    return shown


def not_measured(found: Comparison, lang: str) -> list[tuple[str, str, str]]:
    """Claims that these runs say nothing about: id, text, and how they would be measured."""
    return [
        (claim, _sentence(text.to(lang)), _sentence(catalog.EVIDENCE[claim].to(lang)))
        for claim, text in found.not_measured
    ]


def experiment(found: Comparison, e: Evidence, lang: str) -> dict[str, Any]:
    """One experiment: the texts that stood before it, and what came of it."""
    effect, _ = words.effect(e, lang)
    near, wide = (words.in_unit(e, interval, lang) for interval in (e.effect, e.wide))
    tone = {"supported": "good", "contradicted": "bad"}.get(e.finding, "open")
    return {
        "id": methods.anchor(found, e),
        "name": e.name,
        "question": e.question.to(lang),
        "design": e.design.to(lang),
        "measure": e.measure.to(lang),
        "rule": e.rule.to(lang),
        "effect": effect,
        "spread": near[1],
        "wide": wide[1],
        "bound": "" if e.bound == "exact" else say(f"bound.{e.bound}", lang),
        "n": e.effect.n,
        "smallest": words.in_unit(e, Interval(e.smallest, 0.0, 0.0, 0), lang)[0].lstrip("+"),
        "p": say("p.none", lang) if e.p_corrected is None else words.probability(e.p_corrected),
        "finding": say(f"finding.{e.finding}", lang),
        "badge": methods.badge([e], lang),
        "tone": tone,
        "mini": Markup(small.effect(e, lang)),
        "axis": Markup(small.effect_axis(e, lang)),
        "arms_plot": Markup(small.arms(e, lang) or ""),
        "curves_plot": Markup(small.arm_curves(e, lang) or ""),
        "arms": [_arm(e, i, lang) for i in range(len(e.arms))],
        "middle": say("arm.median" if e.form == "seconds" else "arm.mean", lang),
        "repeat": e.repeat,
    }


def _arm(e: Evidence, index: int, lang: str) -> dict[str, Any]:
    arm = e.arms[index]
    many = len(arm.values) > small.PAIRED
    values = [words.shown(value, e.form) for value in arm.values]
    interval = arm.interval
    return {
        "label": arm.label.to(lang),
        "colour": small.arm_colours(e)[index],
        "mean": words.MISSING if interval is None else words.shown(interval.value, e.form),
        "spread": ""
        if interval is None
        else words.span(words.shown(interval.low, e.form), words.shown(interval.high, e.form), lang),
        "each": "" if many else say("arm.values", lang),
        "values": say("arm.rounds", lang, count=len(values)) if many else " · ".join(values),
    }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
