"""The catalog as cards, tables and data, in either language; nothing here prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from normkit.catalog import claims
from normkit.catalog.methods import METHODS
from normkit.catalog.row import Claim, Method, Paper, Text

NONE = "–"

_METHOD = Text("Method", "方法")
_REGION = Text("Region", "统计域")
_STATISTICS = Text("Statistics per", "统计粒度")
_PRINCIPLE = Text("Principle", "原理")
_FORMULA = Text("Formula", "公式")
_STATE = Text("State", "状态")
_LAYERS = Text("Layers", "层")
_WHERE = Text("Where used", "适用场景")
_STRENGTHS = Text("Claimed strengths", "据称的优点")
_WEAKNESSES = Text("Claimed weaknesses", "据称的缺点")
_CLAIMS = Text("Claims to measure", "待检验的论断")
_PAPER = Text("Paper", "论文")
_ALIASES = Text("Also called", "别名")
_CLAIM = Text("Claim", "论断")
_HOW = Text("How it is tested", "如何检验")

_INTRODUCTION = Text(
    "The dimensions in brackets share one mean and one variance. Strengths and weaknesses are claims of papers and "
    "of practice; normkit has not measured them.",
    "方括号内的维度共用一个均值和一个方差。优缺点来自论文与实践中的说法，并非 normkit 的测量结果。",
)


def card(method: Method, lang: str = "en") -> list[tuple[str, tuple[str, ...]]]:
    """All facts about one method, as labels with one or more lines each.

    >>> from normkit.catalog import find
    >>> dict(card(find("GN")))["Region"]
    ('b (g [c]) [...]',)
    """
    tested = [claim for claim in claims.ALL if claim.id in method.claims]
    lines: list[tuple[Text, Iterable[str]]] = [
        (_PRINCIPLE, [method.principle.to(lang)]),
        (_REGION, method.patterns),
        (_STATISTICS, [method.statistics.to(lang)]),
        (_FORMULA, [method.formula]),
        (_STATE, [method.state.to(lang)]),
        (_LAYERS, [entry_points(method)]),
        (_WHERE, [method.where.to(lang)]),
        (_STRENGTHS, [f"+ {text.to(lang)}" for text in method.strengths]),
        (_WEAKNESSES, [f"- {text.to(lang)}" for text in method.weaknesses]),
        (_CLAIMS, [f"{claim.id}  {claim.text.to(lang)}" for claim in tested]),
        (_PAPER, [str(method.paper)]),
        (_ALIASES, [", ".join(method.aliases)]),
    ]
    return [(label.to(lang), tuple(found)) for label, texts in lines if (found := list(texts))]


def entry_points(method: Method) -> str:
    """The classes for users, or the function that is applied to a layer."""
    return ", ".join(f"normkit.{name}" for name in method.layers) or f"normkit.{method.name}(module)"


def table(lang: str = "en") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The comparison of all methods: the headings, and one row for each method; a cell may have several lines."""
    headings = (_METHOD, _REGION, _STATISTICS, _WHERE, _STRENGTHS, _WEAKNESSES)
    rows: list[tuple[str, ...]] = [
        (
            method.title.to(lang),
            "\n".join(method.patterns) or NONE,
            method.statistics.to(lang),
            method.where.to(lang),
            _list(method.strengths, lang),
            _list(method.weaknesses, lang),
        )
        for method in METHODS
    ]
    return tuple(text.to(lang) for text in headings), rows


def markdown(lang: str = "en") -> str:
    """The whole catalog as a page: the comparison, how each method works, and the claims."""
    headings, rows = table(lang)
    regions = ["\n".join(f"`{pattern}`" for pattern in method.patterns) or NONE for method in METHODS]
    comparison = [(row[0], region, *row[2:]) for row, region in zip(rows, regions, strict=True)]
    works = [
        (
            f"{method.title.to(lang)} `{method.name}`",
            method.principle.to(lang),
            f"`{method.formula}`",
            method.state.to(lang),
            _cited(method.paper),
        )
        for method in METHODS
    ]
    tested = [(claim.id, _claimed(claim, lang), claim.how.to(lang)) for claim in claims.ALL]
    parts = [
        f"# {Text('The methods', '各种方法').to(lang)}",
        _INTRODUCTION.to(lang),
        _grid(headings, comparison),
        f"## {Text('How each works', '各自的做法').to(lang)}",
        _grid([label.to(lang) for label in (_METHOD, _PRINCIPLE, _FORMULA, _STATE, _PAPER)], works),
        f"## {_CLAIMS.to(lang)}",
        _grid(["", _CLAIM.to(lang), _HOW.to(lang)], tested),
    ]
    return "\n\n".join(parts) + "\n"


def data(lang: str = "en") -> dict[str, list[dict[str, Any]]]:
    """The whole catalog as plain data, ready for JSON."""
    all_claims = [
        {
            "id": claim.id,
            "text": claim.text.to(lang),
            "how": claim.how.to(lang),
            "papers": [str(paper) for paper in claim.papers],
        }
        for claim in claims.ALL
    ]
    return {"methods": [method.to_dict(lang) for method in METHODS], "claims": all_claims}


def _list(texts: Iterable[Text], lang: str) -> str:
    # Chinese text has no spaces, so a space after the dot would be the only place for a line break.
    dot = Text("• ", "·").to(lang)
    return "\n".join(f"{dot}{text.to(lang)}" for text in texts)


def _claimed(claim: Claim, lang: str) -> str:
    """A claim, with its sources in parentheses."""
    sources = "; ".join(map(_cited, claim.papers))
    return claim.text.to(lang) + (Text(f" ({sources})", f"（{sources}）").to(lang) if sources else "")


def _cited(paper: Paper) -> str:
    source = f"[arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else f"*{paper.title}*"
    return f"{paper.authors} {paper.year}, {source}"


def _grid(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: line breaks and bars inside a cell are escaped."""
    lines = [headings, ["---"] * len(headings), *rows]
    cells = ([cell.replace("|", r"\|").replace("\n", "<br>") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
