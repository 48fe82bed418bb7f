"""Prepares the data of each part of the page for the template."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape

from normkit import catalog
from normkit.catalog import LANGUAGES
from normkit.errors import ArgumentError
from normkit.study.analysis.results import Results
from normkit.study.execution.workload import first_part
from normkit.study.report.figures import learning_rates, panels
from normkit.study.report.page import claims, decision, methods, numbers
from normkit.study.report.writing import answer, backends, formatting, uncertainty
from normkit.study.report.writing.texts import TEXTS, say

PANELS: tuple[tuple[str, Callable[[Results, int, str], str | None]], ...] = (
    ("curves", panels.curves),
    ("rates", learning_rates.rates),
    ("gaps", panels.gaps),
    ("times", panels.times),
    ("memory", panels.memory),
)
"""The figures with one panel for each batch size."""


def render(found: Results, lang: str = "en") -> str:
    """The whole page as text.

    Raises:
        ArgumentError: no such language.
    """
    check(lang)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html").render(
        lang=lang,
        html_lang={"zh": "zh-Hans"}.get(lang, lang),
        t=partial(_say, lang),
        found=found,
        first_part=first_part,
        measured=max((len(cell.runs) for cell in found.cells), default=0),
        task=found.task.to(lang),
        metric=found.metric,
        test=_capitalized(found.metric.label("test").to(lang)),
        style=Markup(style()),
        script=Markup(_source("page.js")),
        clauses=answer.parts(found, lang).clauses,
        evidence=answer.parts(found, lang).evidence,
        decisions=decision.rows(found, lang),
        reason=decision.reason(found, lang),
        elsewhere=decision.elsewhere(found, lang),
        safe=formatting.listing([formatting.inline(method, lang) for method in found.safe], lang),
        chips=_chips(found, lang),
        errors=_panels(found, panels.errors, lang),
        least=found.metric.amount(found.design.smallest, lang),
        plots={name: _panels(found, plot, lang) for name, plot in PANELS},
        by_method=[
            (method, formatting.title(method, lang), Markup(svg))
            for method in found.design.methods
            if (svg := learning_rates.sensitivity(found, method, lang))
        ],
        sizes_plot=Markup(panels.batch_sizes(found, lang) or ""),
        legend=[(m, formatting.title(m, lang), Markup(panels.swatch(m))) for m in found.design.methods],
        methods=[methods.row(found, method, lang) for method in found.design.methods],
        claims=claims.claims(found, lang),
        not_measured=claims.not_measured(found, lang),
        cells=[numbers.row(found, cell, lang) for cell in found.cells],
        pairs=[numbers.pair(found, pair, lang) for pair in found.pairs],
        failures=[numbers.failure(run, lang) for run in found.failures],
        untrained=numbers.untrained(found, lang),
        on_edge=numbers.on_edge(found, lang),
        recalibrated=numbers.recalibrated(found, lang),
        uncertainty=found.pairs and _uncertainty(found, lang),
        rules=[(heading.to(lang), _emphasis(text.to(lang))) for heading, text in found.rules],
        facts=_facts(found, lang),
    )


def _uncertainty(found: Results, lang: str) -> dict[str, Any]:
    return {
        "heading": uncertainty.HEADING.to(lang),
        "paragraphs": uncertainty.paragraphs(found, lang),
        "tables": uncertainty.tables(found, lang),
        "resolving": uncertainty.resolving(found, lang),
        "command": uncertainty.more_seeds(found),
    }


def check(lang: str) -> None:
    """Refuse an unknown language of the page; called before a study begins."""
    if lang not in LANGUAGES:
        raise ArgumentError(f"the page exists in {' and '.join(LANGUAGES)}, got {lang!r}: use one of these")


def _say(lang: str, key: str, **values: object) -> str:
    return say(key, lang, **values)


def _source(name: str) -> str:
    return (files("normkit.study.report.page") / name).read_text(encoding="utf-8")


def style() -> str:
    """The style sheet of the page, including the colours of the methods in both themes."""
    marks = [(panels.variable(method.name), method.mark) for method in catalog.METHODS if method.mark]
    light = " ".join(f"{name}: {mark.light};" for name, mark in marks)
    dark = " ".join(f"{name}: {mark.dark};" for name, mark in marks)
    themes = (
        f":root {{ {light} }}",
        f'@media (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {{ {dark} }} }}',
        f':root[data-theme="dark"] {{ {dark} }}',
    )
    return "\n".join((*themes, _source("style.css")))


def _emphasis(text: str) -> Markup:
    """`*word*` as emphasis; the rest is text."""
    parts = str(escape(text)).split("*")
    return Markup("".join(f"<em>{part}</em>" if i % 2 else part for i, part in enumerate(parts)))


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _panels(found: Results, plot: Callable[[Results, int, str], str | None], lang: str) -> list[tuple[int, Markup]]:
    return [(size, Markup(svg)) for size in found.design.batch_sizes if (svg := plot(found, size, lang))]


def _chips(found: Results, lang: str) -> list[tuple[str, str]]:
    own = sum(len(cell.tuning) + len(cell.runs) for cell in found.cells)
    untrained = sum(cell.untrained for cell in found.cells)
    chips = [
        (f"{found.trained or own}", say("chip.runs", lang)),
        (f"{found.design.seeds}", say("chip.seeds", lang)),
        (f"{found.design.trials}", say("chip.rates", lang)),
    ]
    if found.evidence:
        claims = len({e.claim for e in found.evidence})
        chips.append((f"{len(found.evidence)}", say("chip.experiments", lang, claims=claims)))
    if untrained:
        chips.append((f"{untrained}", say("chip.untrained" if untrained > 1 else "chip.untrained.one", lang)))
    if found.failures:
        failed = len(found.failures)
        chips.append((f"{failed}", say("chip.failed" if failed > 1 else "chip.failed.one", lang)))
    return [*chips, (formatting.duration(found.seconds, lang), say("chip.time", lang))]


def _facts(found: Results, lang: str) -> list[tuple[str, str]]:
    """Provenance: machine, versions, seeds; a key without a text is shown itself."""
    facts = []
    for key, value in found.machine.items():
        name = say(f"fact.{key}", lang) if f"fact.{key}" in TEXTS else str(key)
        if key == "kernels":
            facts.append((name, backends.kernels(str(value), lang)))
            continue
        known = f"value.{value}" in TEXTS
        facts.append((name, say(f"value.{value}", lang) if known else str(value)))
    seeds, tuning = found.design.evaluation_seeds, found.design.tuning_seeds
    facts.append((say("origin.seeds", lang), formatting.span(str(seeds[0]), str(seeds[-1]), lang)))
    facts.append((say("origin.tuning", lang), formatting.listing([str(seed) for seed in sorted(tuning)], lang)))
    return facts
