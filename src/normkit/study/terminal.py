"""A comparison as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from normkit.study.comparison import Comparison

STYLES = {"supported": "green", "contradicted": "red", "not resolved": "dim"}


def table(comparison: Comparison) -> Table:
    """The comparison as a table for the terminal (rich); lowest error first within each batch size."""
    from rich import box
    from rich.table import Table

    from normkit.study.comparison import HEADINGS

    shown = Table(
        title=comparison.answer,
        title_justify="left",
        title_style="bold",
        caption=comparison.note,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    # The last column says who did not train; where all did, a narrow terminal can do without it.
    width = len(HEADINGS) if any(cell.untrained for cell in comparison.cells) else len(HEADINGS) - 1
    for heading in HEADINGS[:width]:
        shown.add_column(heading, justify="left" if heading in ("method", "standing") else "right")
    before = ""
    for row in comparison.rows():
        if before and row[0] != before:
            shown.add_section()
        style = "green" if row[4] == "leads" else "dim" if row[4] == "behind" else ""
        shown.add_row(row[0] if row[0] != before else "", *row[1:width], style=style)
        before = row[0]
    return shown


def findings(comparison: Comparison) -> Table:
    """What the experiments say of the claims."""
    from rich import box
    from rich.table import Table

    from normkit.study import words

    shown = Table(
        title="What is said, and what was seen", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for heading in ("claim", "experiment", "effect", "95 %", "finding"):
        shown.add_column(heading, justify="right" if heading in ("effect", "95 %") else "left")
    before = ""
    for evidence in comparison.evidence:
        value, spread = words.effect(evidence)
        claim = evidence.claim if evidence.claim != before else ""
        shown.add_row(claim, evidence.name, value, spread, evidence.finding, style=STYLES[evidence.finding])
        before = evidence.claim
    return shown
