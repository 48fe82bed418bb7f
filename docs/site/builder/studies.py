"""The studies of the gallery: their committed results, the report of each, and a summary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

from builder.words import say
from normkit.study.comparison import Comparison
from normkit.study.report import render
from normkit.study.report.figures import files, panels
from normkit.study.report.writing import answer, formatting, texts

EMBEDDED = "embedded"
"""The study of the built-in data, whose verdicts the pages of the methods show."""
PLACE = re.compile(r"(?m)^<!-- study: ([\w-]+) -->$")
"""A line of a gallery page that is replaced by the summary of a study."""


@dataclass(frozen=True)
class Study:
    """Results that are committed as `docs/en/gallery/NAME.json`, which `normkit compare` wrote as results.json."""

    file: Path

    @property
    def name(self) -> str:
        return self.file.stem

    @cached_property
    def results(self) -> Comparison:
        return Comparison.load(self.file)


def found(folder: Path) -> dict[str, Study]:
    """All studies of a folder, by name."""
    return {file.stem: Study(file) for file in sorted(folder.glob("*.json"))}


def href(study: Study, folder: str = "") -> str:
    """The address of the report, from a page; `folder` leads from there to the gallery."""
    return f"{folder}{study.name}.html"


def extra(studies: Sequence[Study], lang: str) -> dict[str, str]:
    """Files of the site's gallery that are no pages of Sphinx: reports, and the figures of their summaries."""
    made = {}
    for study in studies:
        made[href(study)] = render(study.results, lang)
        for size in study.results.design.batch_sizes:
            svg = panels.errors(study.results, size, lang)
            if svg is not None:
                made[f"{study.name}-{size}.svg"] = files.standalone(svg)
    return made


def with_summaries(markdown: str, studies: dict[str, Study], lang: str) -> str:
    """A page of the gallery with the summary of each study in its place."""

    def summary(match: re.Match[str]) -> str:
        if match[1] not in studies:
            raise ValueError(
                f"the gallery names the study {match[1]!r}, got results of {', '.join(studies) or 'no study'}"
            )
        return _summary(studies[match[1]], lang)

    return PLACE.sub(summary, markdown)


def _summary(study: Study, lang: str) -> str:
    """The answer, the numbers of the study, a figure for each batch size, and the link to the report."""
    results = study.results
    metric = results.metric.label("test").to(lang)
    counts = [
        (results.trained or sum(len(cell.tuning) + len(cell.runs) for cell in results.cells), "runs"),
        (len(results.design.methods), "methods"),
        (results.design.seeds, "seeds"),
        (len(results.evidence), "experiments"),
    ]
    chips = [f"<li><b>{count}</b> {escape(say(key, lang))}</li>" for count, key in counts if count]
    if results.seconds:
        chips.append(f"<li><b>{escape(formatting.duration(results.seconds, lang))}</b></li>")
    figures = [
        f'<figure><img src="{study.name}-{size}.svg" loading="lazy" alt="'
        f'{escape(say("figure", lang, metric=metric[:1].upper() + metric[1:], size=size))}">'
        f"<figcaption>{escape(texts.say('batch', lang, size=size))}</figcaption></figure>"
        for size in results.design.batch_sizes
        if panels.errors(results, size, lang) is not None
    ]
    parts = answer.parts(results, lang)
    clauses = "<br>".join(
        f"{escape(clause.before)}<strong>{escape(clause.names)}</strong>{escape(clause.after)}"
        for clause in parts.clauses
    )
    evidence = "".join(f"<p>{escape(sentence)}</p>" for sentence in parts.evidence)
    return (
        f'<div class="nk-study"><p class="nk-answer">{clauses}</p>{evidence}'
        f'<ul class="nk-chips">{"".join(chips)}</ul><div class="nk-figures">{"".join(figures)}</div>'
        f'<p><a class="nk-button" href="{href(study)}">{escape(say("open report", lang))}</a></p></div>\n\n'
        f"{say('repeat', lang)}{'：' if lang == 'zh' else ':'}\n\n```sh\n{results.command}\n```"
    )
