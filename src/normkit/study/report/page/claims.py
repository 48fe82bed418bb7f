"""The claims and the experiments on them, ready for the template."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from markupsafe import Markup

from normkit import catalog
from normkit.study.analysis.evidence import Evidence
from normkit.study.analysis.results import Results
from normkit.study.analysis.stats import Interval
from normkit.study.report.figures import sparklines
from normkit.study.report.page import methods
from normkit.study.report.writing import formatting
from normkit.study.report.writing.texts import say


def claims(found: Results, lang: str) -> list[dict[str, Any]]:
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


def not_measured(found: Results, lang: str) -> list[tuple[str, str, str]]:
    """Claims that these runs do not measure: id, text, and how they would be measured."""
    return [
        (claim, _sentence(text.to(lang)), _sentence(catalog.EVIDENCE[claim].to(lang)))
        for claim, text in found.not_measured
    ]


def experiment(found: Results, e: Evidence, lang: str) -> dict[str, Any]:
    """One experiment: its texts and its result."""
    effect, _ = formatting.effect(e, lang)
    near, wide = (formatting.in_unit(e, interval, lang) for interval in (e.effect, e.wide))
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
        "smallest": formatting.in_unit(e, Interval(e.smallest, 0.0, 0.0, 0), lang)[0].lstrip("+"),
        "p": say("p.none", lang) if e.p_corrected is None else formatting.probability(e.p_corrected),
        "finding": say(f"finding.{e.finding}", lang),
        "badge": methods.badge([e], lang),
        "tone": tone,
        "mini": Markup(sparklines.effect(e, lang)),
        "axis": Markup(sparklines.effect_axis(e, lang)),
        "variants_plot": Markup(sparklines.variants(e, lang) or ""),
        "curves_plot": Markup(sparklines.variant_curves(e, lang) or ""),
        "variants": [_variant(e, i, lang) for i in range(len(e.variants))],
        "middle": say("variant.median" if e.form == "seconds" else "variant.mean", lang),
        "repeat": e.repeat,
    }


def _variant(e: Evidence, index: int, lang: str) -> dict[str, Any]:
    variant = e.variants[index]
    many = len(variant.values) > sparklines.PAIRED
    values = [formatting.shown(value, e.form) for value in variant.values]
    interval = variant.interval
    if interval is not None and e.form == "share" and all(0 <= value <= 1 for value in variant.values):
        # The interval of a share may reach beyond what a share can be.
        interval = replace(interval, low=max(0.0, interval.low), high=min(1.0, interval.high))
    return {
        "label": variant.label.to(lang),
        "colour": sparklines.variant_colours(e)[index],
        "mean": formatting.MISSING if interval is None else formatting.shown(interval.value, e.form),
        "spread": ""
        if interval is None
        else formatting.span(formatting.shown(interval.low, e.form), formatting.shown(interval.high, e.form), lang),
        "each": "" if many else say("variant.values", lang),
        "values": say("variant.rounds", lang, count=len(values)) if many else " · ".join(values),
    }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
