"""One page for each row of the catalog, and the pictures on the page of all methods."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Sequence
from html import escape

import normkit
from builder import studies
from builder.studies import Study
from builder.words import say
from normkit import catalog, draw, functional
from normkit.catalog import Method, Statement
from normkit.catalog.show import entry_points
from normkit.study.report.figures import sparklines
from normkit.study.report.page.methods import anchor, badge
from normkit.study.report.writing import claim_links, formatting
from normkit.study.report.writing.places import PLACES, TONES, place

_NAMESPACE = ' xmlns="http://www.w3.org/2000/svg"'


def pages(study: Study | None, lang: str) -> dict[str, str]:
    """The Markdown of every method's page, by the name of its file without a suffix."""
    return {method.name: _page(method, study, lang) for method in catalog.METHODS}


def grid(lang: str) -> str:
    """All methods as pictures with links, for the page that lists them."""
    cards = "".join(
        f'<a class="nk-card nk-method" href="{method.name}.html">{_picture(method, lang)}'
        f"<strong>{escape(method.title.to(lang))}</strong>"
        f"<code>{escape(method.pattern or method.formula)}</code></a>"
        for method in catalog.METHODS
    )
    return f'<div class="nk-cards nk-methods">{cards}</div>'


def linked(markdown: str, lang: str) -> str:
    """The generated page of all methods with a link on each name, and with the pictures after its introduction."""
    for method in catalog.METHODS:
        name = re.escape(method.title.to(lang))
        markdown = re.sub(
            rf"(?m)^\| {name}( `{method.name}`)? \|", rf"| [{method.title.to(lang)}]({method.name}.md)\1 |", markdown
        )
    head, introduction, rest = markdown.split("\n\n", 2)
    return "\n\n".join((head, introduction, grid(lang), rest))


def _page(method: Method, study: Study | None, lang: str) -> str:
    title = method.title.to(lang)
    parts = [
        f"# {title}",
        method.principle.to(lang),
        _figure(method, lang),
        _facts(method, lang),
        f"## {say('formula', lang)}",
        f"```text\n{method.formula}\n```",
        f"## {say('example', lang)}",
        f"```pycon\n{_example(method)}\n```",
        f"## {say('claims', lang)}",
        *([say("claims lead", lang, study="../gallery/index.md")] if study else []),
        f"### {say('strengths', lang)}",
        _statements(method.strengths, study, lang),
        f"### {say('weaknesses', lang)}",
        _statements(method.weaknesses, study, lang),
        *(_experiments(method, study, lang) if study else []),
        *(_results(method, study, lang) if study else []),
        f"## {say('paper', lang)}",
        _papers(method),
        f"[{say('all methods', lang)}](index.md)",
    ]
    return "\n\n".join(parts) + "\n"


def _picture(method: Method, lang: str) -> str:
    key = "cube" if method.patterns else "cube plain"
    title = say(key, lang, name=method.title.to(lang), statistics=method.statistics.to(lang), formula=method.formula)
    return draw.svg(method.name, title=title).replace(_NAMESPACE, "").strip()


def _figure(method: Method, lang: str) -> str:
    patterns = "".join(f"<code>{escape(pattern)}</code> " for pattern in method.patterns)
    caption = f"{escape(say('region', lang))}: {patterns}" if patterns else escape(say("not a region", lang))
    if lang == "zh":
        caption = caption.replace(": ", "：")
    return f'<figure class="nk-region">{_picture(method, lang)}<figcaption>{caption}</figcaption></figure>'


def _facts(method: Method, lang: str) -> str:
    """A table of what to know before use; one row for each fact."""
    rows = [
        (say("statistics", lang), method.statistics.to(lang)),
        (say("state", lang), method.state.to(lang)),
        (say("use", lang), method.where.to(lang)),
        (say("layers" if method.layers else "applied", lang), _links(method)),
    ]
    if method.name in functional.__all__:
        name = f"normkit.functional.{method.name}"
        rows.append((say("function", lang), f"[`{name}`](../api/{name}.rst)"))
    if method.acts_on == "activations" and method.eps != 0:
        rows.append((say("eps", lang), say("eps of dtype", lang) if method.eps is None else f"`{method.eps:g}`"))
    rows.append((say("aliases", lang), ", ".join(method.aliases)))
    return _table(("", ""), rows)


def _links(method: Method) -> str:
    names = method.layers or (method.name,)
    shown = entry_points(method).split(", ")
    return ", ".join(f"[`{text}`](../api/normkit.{name}.rst)" for name, text in zip(names, shown, strict=True))


def _example(method: Method) -> str:
    """The example in the docstring of its first layer, or of the function that applies it."""
    name = method.layers[0] if method.layers else method.name
    docstring = inspect.getdoc(getattr(normkit, name)) or ""
    found = re.search(r"^Examples?:\n((?:(?:[ ]{4}.*)?\n)+)", docstring + "\n", re.MULTILINE)
    if found is None:
        raise ValueError(f"the docstring of normkit.{name} needs a section `Example:`, which the site shows")
    return textwrap.dedent(found[1]).strip()


def _statements(statements: Sequence[Statement], study: Study | None, lang: str) -> str:
    lines = []
    for statement in statements:
        shown = ""
        if study and statement.claim:
            _, evidence = claim_links.linked(statement, study.results.evidence)
            if evidence:
                effects = "".join(_mini(study, each, lang) for each in evidence)
                shown = f" {_badge(badge(evidence, lang))}{effects}"
        lines.append(f"- {statement.to(lang)}{shown}")
    return "\n".join(lines)


def _experiments(method: Method, study: Study, lang: str) -> list[str]:
    rows = []
    for each in study.results.evidence:
        if each.claim not in method.claims:
            continue
        value, spread = formatting.effect(each, lang)
        link = f'<a href="{studies.href(study, "../gallery/")}#{anchor(study.results, each)}">{each.claim}</a>'
        verdict = _badge(badge([each], lang))
        rows.append((link, each.question.to(lang), verdict, f"{value} {_mini(study, each, lang)}", spread or "–"))
    if not rows:
        return []
    heading = [say(key, lang) for key in ("claim", "question", "verdict", "effect", "interval")]
    return [f"## {say('measured', lang)}", say("measured lead", lang), _table(heading, rows)]


def _results(method: Method, study: Study, lang: str) -> list[str]:
    """The error of the method in the comparison, at each batch size."""
    found = study.results
    cells = [cell for cell in found.cells if cell.method == method.name and cell.error]
    if not cells:
        return []
    rows = []
    for cell in cells:
        value, spread = formatting.error(cell.error, found.metric, lang)
        where = place(found, cell)
        name = _badge({"text": PLACES[where].to(lang), "tone": TONES[where], "icon": ""})
        rows.append((str(cell.batch_size), value, spread, name))
    heading = [say(key, lang) for key in ("batch", "value", "interval", "place")]
    metric = found.metric.label("test").to(lang)
    lead = say(
        "result lead", lang, task=found.task.to(lang), metric=metric[:1].upper() + metric[1:], seeds=found.design.seeds
    )
    return [f"## {say('result', lang)}", lead, _table(heading, rows)]


def _papers(method: Method) -> str:
    """The paper of the method, and those of the claims about it."""
    sources = [method.paper]
    for claim in catalog.claims.ALL:
        if claim.id in method.claims:
            sources += [paper for paper in claim.papers if paper not in sources]
    return "\n".join(
        f"- {paper.authors} {paper.year}, *{paper.title}*"
        + (f", [arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else "")
        for paper in sources
    )


def _mini(study: Study, evidence: object, lang: str) -> str:
    return f'<span class="nk-mini">{sparklines.effect(evidence, lang)}</span>'.replace(_NAMESPACE, "")


def _badge(shown: dict[str, str]) -> str:
    icon = f"{shown['icon']} " if shown["icon"] else ""
    return f'<span class="nk-badge {shown["tone"]}">{icon}{escape(shown["text"])}</span>'


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
