"""The table of the methods: facts and claims about each, and the measurements."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from normkit import catalog, draw, pattern
from normkit.catalog import Statement
from normkit.study.analysis.cells import Cell
from normkit.study.analysis.evidence import Evidence
from normkit.study.analysis.results import Results
from normkit.study.report.figures import panels, sparklines
from normkit.study.report.writing import claim_links, formatting
from normkit.study.report.writing.places import PLACES, TONES, place
from normkit.study.report.writing.texts import say
from normkit.study.task import embedded

_NAMESPACE = ' xmlns="http://www.w3.org/2000/svg"'
"""Needed in a separate file; inside a page it only looks like an outside reference."""
_LAST_LAYER = (embedded.CHANNELS[-1][0], 2, 2)
"""Channels, height and width at the layer of the built-in network with the smallest regions."""


def row(found: Results, method: str, lang: str) -> dict[str, Any]:
    """One method."""
    cells = [found.cell(method, size) for size in found.design.batch_sizes]
    first = next((cell.error.value for cell in cells if cell.error), math.inf)
    common: dict[str, Any] = {
        "name": method,
        "title": formatting.title(method, lang),
        "variable": panels.variable(method),
        "measured": [measured(found, cell, lang) for cell in cells],
        "sort": first if math.isfinite(first) else "",
    }
    method, _, _ = method.partition(":")
    if method in ("none", "unchanged"):
        return common | {
            "cube": None,
            "pattern": "y = x" if method == "none" else None,
            "principle": say(f"{method}.principle", lang),
            "where": say(f"{method}.where", lang),
            "strengths": [],
            "weaknesses": [],
            "region": [],
            "weights": False,
        }
    known = catalog.find(method)
    title = say("alt.cube", lang, name=known.title.to(lang), statistics=known.statistics.to(lang))
    return common | {
        "cube": Markup(draw.svg(method, title=title).replace(_NAMESPACE, "")),
        "pattern": known.pattern or known.formula,
        "principle": known.principle.to(lang),
        "where": known.where.to(lang),
        "strengths": [_claimed(each, found, lang) for each in known.strengths],
        "weaknesses": [_claimed(each, found, lang) for each in known.weaknesses],
        "region": _region(found, known.pattern),
        "weights": known.of_weights,
    }


def measured(found: Results, cell: Cell, lang: str) -> dict[str, Any]:
    """The result of a cell, in its short form."""
    value, spread = formatting.error(cell.error, found.metric, lang)
    where = place(found, cell)
    return {
        "batch_size": cell.batch_size,
        "value": value,
        "spread": spread,
        "place": where,
        "badge": PLACES[where].to(lang),
        "tone": TONES[where],
        "strip": Markup(sparklines.strip(found, cell, lang)),
        "untrained": say("messages.count", lang, count=cell.untrained, runs=len(cell.runs)) if cell.untrained else "",
    }


def badge(evidence: list[Evidence], lang: str) -> dict[str, str]:
    """The verdict of one or several experiments."""
    finding = claim_links.summary(evidence)
    tone = {"supported": "good", "contradicted": "bad"}.get(finding, "open")
    if not finding:
        return {"text": say("unmeasured", lang), "tone": tone, "icon": "·"}
    text = say(f"finding.{finding}", lang)
    if finding == "mixed":
        counts = [
            (sum(e.finding == name for e in evidence), name) for name in ("supported", "contradicted", "not resolved")
        ]
        parts = [say("tally", lang, count=n, finding=say(f"finding.{name}", lang)) for n, name in counts if n]
        text = " · ".join(parts)
    icons = {"supported": "✓", "contradicted": "✗", "mixed": "≈", "not resolved": "?"}
    return {"text": text, "tone": tone, "icon": icons[finding]}


def _claimed(statement: Statement, found: Results, lang: str) -> dict[str, Any]:
    claim, evidence = claim_links.linked(statement, found.evidence)
    return {
        "text": statement.to(lang),
        "claim": claim,
        "asked": bool(found.evidence) and bool(claim),
        "badge": badge(evidence, lang),
        "effects": [(anchor(found, e), Markup(sparklines.effect(e, lang)), e.question.to(lang)) for e in evidence],
    }


def anchor(found: Results, evidence: Evidence) -> str:
    """The id of an experiment on the page: its claim and its number among the experiments on it."""
    of_claim = [e for e in found.evidence if e.claim == evidence.claim]
    return f"{evidence.claim}-{'abcdefghijklmnopqrstuvwxyz'[of_claim.index(evidence) % 26]}"


def _region(found: Results, text: str | None) -> list[tuple[int, int]]:
    """For the built-in network, the number of values that share one mean at the last convolution, by batch size."""
    if text is None or found.task != embedded.NAME:
        return []
    region = pattern.parse(text)
    if any(axis.name == "g" for axis in region.axes):
        region = region.bind(g=embedded.GROUPS)
    return [
        (size, math.prod(level.size for level in region.levels((size, *_LAST_LAYER)) if level.reduced))
        for size in found.design.batch_sizes
    ]
