"""The page: numbers into words, words into the template."""

from __future__ import annotations

import math
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape

from normkit import catalog, draw, pattern
from normkit.study import words
from normkit.study.comparison import Comparison, place_of
from normkit.study.embedded import CHANNELS, GROUPS
from normkit.study.evidence import Evidence
from normkit.study.report import figures
from normkit.study.verdict import Cell, Pair

_PLACES = {
    "leads": "front",
    "equal": "tie",
    "not resolved": "tie",
    "behind": "behind",
    "not measured": "behind",
}
_NAMESPACE = ' xmlns="http://www.w3.org/2000/svg"'
"""Needed in a file of its own; inside a page it only looks like an outside reference."""

_LAST_LAYER = (CHANNELS[-1][0], 2, 2)
"""Channels, height and width where the regions are smallest."""


def render(comparison: Comparison) -> str:
    """The whole page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    sizes = comparison.design.batch_sizes
    return environment.get_template("page.html").render(
        comparison=comparison,
        style=Markup(_source("style.css")),
        words=words,
        smallest_error=comparison.design.smallest,
        chips=_chips(comparison),
        safe=[words.inline(method) for method in comparison.safe],
        legend={
            plot: [(words.title(m), Markup(figures.swatch(m, plot))) for m in comparison.design.methods]
            for plot in ("curves", "sizes", "rates")
        },
        methods=[_method(comparison, method) for method in comparison.design.methods],
        plots={
            name: [(size, Markup(svg)) for size in sizes if (svg := plot(comparison, size))]
            for name, plot in {
                "errors": figures.errors,
                "curves": figures.curves,
                "rates": figures.rates,
                "gaps": figures.gaps,
            }.items()
        },
        sizes_plot=Markup(figures.batch_sizes(comparison) or ""),
        recalibrated=[
            (words.inline(c.method), c.batch_size, words.error(c.error)[0], words.error(c.recalibrated_error)[0])
            for c in comparison.cells
            if c.error is not None and c.recalibrated_error is not None
        ],
        claims=[_claim(evidence) for evidence in comparison.evidence],
        not_measured=[(claim, text, catalog.EVIDENCE[claim]) for claim, text in comparison.not_measured],
        pairs=[_pair(pair) for pair in comparison.pairs],
        on_edge=[
            f"{words.inline(cell.method)} with {cell.batch_size} images per step ({words.rate(cell.rate)})"
            for cell in comparison.on_edge
        ],
        rules=[(heading, _emphasis(text)) for heading, text in comparison.rules],
    )


def _source(name: str) -> str:
    return (files("normkit.study.report") / name).read_text(encoding="utf-8")


def _emphasis(text: str) -> Markup:
    """`*word*` as emphasis; the rest is text."""
    parts = str(escape(text)).split("*")
    return Markup("".join(f"<em>{part}</em>" if i % 2 else part for i, part in enumerate(parts)))


def _chips(comparison: Comparison) -> list[tuple[str, str]]:
    design = comparison.design
    runs = sum(len(cell.tuning) + len(cell.runs) for cell in comparison.cells)
    found = [evidence.finding for evidence in comparison.evidence]
    tally = " · ".join(str(found.count(finding)) for finding in ("supported", "contradicted", "not resolved"))
    return [
        ("training runs", f"{runs}"),
        ("seeds behind each result", f"{design.seeds}"),
        ("learning rates tried for each", f"{design.trials}"),
        ("verdicts: supported · contradicted · not resolved", tally),
        ("wall time of the last call", words.duration(comparison.seconds)),
    ]


def _method(comparison: Comparison, method: str) -> dict[str, Any]:
    """One row of the main table: what is known and claimed, and what was measured."""
    row: dict[str, Any] = {
        "name": method,
        "title": words.title(method),
        "variable": f"--{method.replace('_', '-')}",
        "measured": [_measured(comparison, comparison.cell(method, s)) for s in comparison.design.batch_sizes],
    }
    if method in ("none", "unchanged"):
        return row | {
            "cube": None,
            "pattern": None,
            "formula": "y = x" if method == "none" else "",
            "principle": "No values are normalized." if method == "none" else "The model with the norms it came with.",
            "where": "the yardstick of this comparison",
            "strengths": (),
            "weaknesses": (),
            "claims": (),
            "region": [],
        }
    known = catalog.find(method)
    return row | {
        "cube": Markup(draw.svg(method).replace(_NAMESPACE, "")),
        "pattern": known.pattern,
        "formula": known.formula,
        "principle": known.principle,
        "where": known.where,
        "strengths": known.strengths,
        "weaknesses": known.weaknesses,
        "claims": known.claims,
        "region": _region(known.pattern, comparison.design.batch_sizes),
    }


def _region(text: str | None, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """How many values share one mean at the last convolution, for each batch size."""
    if text is None:
        return []
    region = pattern.parse(text)
    if any(axis.name == "g" for axis in region.axes):
        region = region.bind(g=GROUPS)
    return [
        (size, math.prod(level.size for level in region.levels((size, *_LAST_LAYER)) if level.reduced))
        for size in sizes
    ]


def _measured(comparison: Comparison, cell: Cell) -> dict[str, Any]:
    standing = comparison.standing(cell.batch_size)
    place = place_of(cell.method, standing) if cell.error and standing.leader else "not measured"
    return {
        "batch_size": cell.batch_size,
        "error": words.error(cell.error),
        "place": place,
        "tone": _PLACES[place],
        "steps": words.steps(cell.median_steps),
        "time": words.times(cell.time_ratio)[0],
        "rate": words.rate(cell.rate),
        "train_error": words.error(cell.train_error)[0],
        "untrained": cell.untrained,
        "runs": len(cell.runs),
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "batch_size": pair.batch_size,
        "compared": f"{words.inline(pair.second)} − {words.inline(pair.first)}",
        "difference": words.points(pair.difference),
        "p": f"{pair.p_corrected:.2g}",
        "relation": {"better": "worse", "worse": "better"}.get(pair.relation, pair.relation),
    }


def _claim(evidence: Evidence) -> dict[str, Any]:
    """One experiment as a row: what was compared, the effect, the verdict."""
    effect, spread = words.effect(evidence)
    return {
        "id": evidence.claim,
        "text": catalog.CLAIMS[evidence.claim],
        "name": evidence.name,
        "question": evidence.question,
        "compared": evidence.measure,
        "effect": effect,
        "spread": spread,
        "n": f"{evidence.effect.n}",
        "p": words.MISSING if evidence.p_corrected is None else f"{evidence.p_corrected:.2g}",
        "finding": evidence.finding,
        "tone": evidence.finding.replace(" ", "-"),
    }
