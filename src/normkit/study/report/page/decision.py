"""The decision table, and the reason if there is nothing to decide."""

from __future__ import annotations

import math
from typing import Any

from normkit.study.analysis.results import Results
from normkit.study.report.figures import panels
from normkit.study.report.page import methods, numbers
from normkit.study.report.writing import formatting
from normkit.study.report.writing.decision import Choice, Decision, decisions, why
from normkit.study.report.writing.texts import say


def rows(found: Results, lang: str) -> list[dict[str, Any]]:
    """A row for each batch size; no rows if nothing was trained."""
    made = decisions(found)
    if not any(each.take for each in made):
        return []
    return [
        {
            "batch_size": each.batch_size,
            "take": [_choice(found, each, choice, lang) for choice in each.take],
            "avoid": [_choice(found, each, choice, lang) for choice in each.avoid],
        }
        for each in made
    ]


def _choice(found: Results, decision: Decision, choice: Choice, lang: str) -> dict[str, str]:
    row = f"{choice.method}-{decision.batch_size}"
    compared = choice.pair is not None and choice.place != "leads"
    return {
        "method": choice.method,
        "title": formatting.title(choice.method, lang),
        "variable": panels.variable(choice.method),
        "why": why(found, decision, choice, lang),
        "link": numbers.pair_id(choice.pair) if compared and choice.pair else row,
    }


def elsewhere(found: Results, lang: str) -> list[dict[str, str]]:
    """The experiments that found one method better than another: in which respect, which ones, and by how much.

    Only those whose effect is the error or loss of one method minus that of another: lower is better.
    """
    shown: list[dict[str, str]] = []
    for e in found.evidence:
        if e.finding != "supported" or e.p_corrected is None or e.unit not in ("points", "nats", "loss"):
            continue
        if len(e.variants) < 2:
            continue
        first, second = e.variants[:2]
        if first.method == second.method or not first.interval or not second.interval:
            continue
        if not math.isclose(first.interval.value - second.interval.value, e.effect.value, rel_tol=1e-6, abs_tol=1e-9):
            continue
        shown.append(
            {
                "question": e.question.to(lang),
                "better": second.label.to(lang),
                "worse": first.label.to(lang),
                "effect": formatting.effect(e, lang)[0],
                "link": methods.anchor(found, e),
            }
        )
    return shown


def reason(found: Results, lang: str) -> dict[str, str] | None:
    """Why there is no result at all: the first message of the runs that failed."""
    if not found.complete or not found.failures or any(cell.error for cell in found.cells):
        return None
    first = found.failures[0]
    where = numbers.failure(first, lang)["where"]
    return {
        "text": say("reason.failed", lang, count=len(found.failures), where=where),
        "message": first.message,
    }
