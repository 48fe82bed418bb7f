"""Results as tables for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from normkit.study.analysis.results import Results
from normkit.study.report.writing import formatting
from normkit.study.report.writing import table as written
from normkit.study.report.writing.answer import parts
from normkit.study.report.writing.texts import say

_PLACES = {"leads": "green", "behind": "dim"}
_FINDINGS = {"supported": "green", "contradicted": "red", "not resolved": "dim"}


def both(found: Results, lang: str = "en") -> Group:
    """The decision and the results."""
    return Group(decision(found, lang), table(found, lang))


def decision(found: Results, lang: str = "en") -> Table | Text:
    """What to take and what to avoid at each batch size, with the evidence; its title is the decision."""
    title = Text("\n".join("".join(clause) for clause in parts(found, lang).clauses), style="bold")
    lines = written.choices(found, lang)
    if not lines:
        return title
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for key in ("decision.size", "decision.choice", "col.method", "decision.evidence"):
        shown.add_column(say(key, lang), justify="right" if key == "decision.size" else "left")
    before = ("", "")
    for size, verb, name, why in lines:
        if before[0] and size != before[0]:
            shown.add_section()
        style = "dim" if verb == say("decision.avoid", lang) else ""
        same = size == before[0]
        shown.add_row("" if same else size, "" if same and verb == before[1] else verb, name, escape(why), style=style)
        before = (size, verb)
    return shown


def table(found: Results, lang: str = "en") -> Table:
    """The results as a table, in "en" or "zh"; the best first in each batch size."""
    shown = Table(
        title=escape(" ".join(parts(found, lang).evidence)),
        title_justify="left",
        title_style="",
        # The text of an error may contain brackets, which rich would read as markup.
        caption=escape(written.note(found).to(lang)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    headings = written.headings(found, lang)._asdict()
    if not any(cell.untrained for cell in found.cells):
        # If all runs trained, this column would only take space in a narrow terminal.
        del headings["untrained"]
    for name, heading in headings.items():
        shown.add_column(heading, justify="left" if name in ("method", "place") else "right")
    before = None
    for row in written.rows(found, lang):
        if before is not None and row.batch_size != before:
            shown.add_section()
        texts = row.texts._asdict() | ({"batch_size": ""} if row.batch_size == before else {})
        shown.add_row(*(texts[name] for name in headings), style=_PLACES.get(row.place, ""))
        before = row.batch_size
    return shown


def findings(found: Results, lang: str = "en") -> Table:
    """The findings of the experiments; in Chinese with their questions, because their names are English."""
    shown = Table(
        title=say("claims", lang), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for key in ("findings.claim", "findings.experiment", "findings.effect", "findings.interval", "findings.finding"):
        shown.add_column(say(key, lang), justify="right" if key in ("findings.effect", "findings.interval") else "left")
    before = ""
    for evidence in found.evidence:
        value, interval = formatting.effect(evidence, lang)
        claim = evidence.claim if evidence.claim != before else ""
        name = evidence.name if lang == "en" else evidence.question.to(lang)
        finding = say(f"finding.{evidence.finding}", lang)
        shown.add_row(claim, name, value, interval, finding, style=_FINDINGS[evidence.finding])
        before = evidence.claim
    return shown
