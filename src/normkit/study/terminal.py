"""A comparison as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from normkit.study.comparison import Comparison

STYLES = {"supported": "green", "contradicted": "red", "not resolved": "dim"}


def table(comparison: Comparison, lang: str = "en") -> Table:
    """The comparison as a table for the terminal (rich), in "en" or "zh"; lowest error first in each batch size."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    shown = Table(
        title=comparison.answer.to(lang),
        title_justify="left",
        title_style="bold",
        # An error's text may have brackets, which rich would read as markup.
        caption=escape(comparison.note.to(lang)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    # The last column says who did not train; where all did, a narrow terminal can do without it.
    headings = comparison.headings(lang)
    width = len(headings) if any(cell.untrained for cell in comparison.cells) else len(headings) - 1
    for place, heading in enumerate(headings[:width]):
        shown.add_column(heading, justify="left" if place in (1, 4) else "right")
    before = ""
    for row in comparison.rows(lang):
        if before and row[0] != before:
            shown.add_section()
        style = "green" if row[4] in ("leads", "领先") else "dim" if row[4] in ("behind", "落后") else ""
        shown.add_row(row[0] if row[0] != before else "", *row[1:width], style=style)
        before = row[0]
    return shown


def findings(comparison: Comparison, lang: str = "en") -> Table:
    """What the experiments say of the claims; in Chinese by their questions, which have no other name there."""
    from rich import box
    from rich.table import Table

    from normkit.study import words
    from normkit.study.report.texts import say

    shown = Table(title=say("claims", lang), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    headings = (
        ("claim", "experiment", "effect", "95 %", "finding")
        if lang == "en"
        else ("论断", "问题", "效应", "95 %", "结论")
    )
    for place, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if place in (2, 3) else "left")
    before = ""
    for evidence in comparison.evidence:
        value, spread = words.effect(evidence, lang)
        claim = evidence.claim if evidence.claim != before else ""
        name = evidence.name if lang == "en" else evidence.question.to(lang)
        finding = say(f"finding.{evidence.finding}", lang)
        shown.add_row(claim, name, value, spread, finding, style=STYLES[evidence.finding])
        before = evidence.claim
    return shown
