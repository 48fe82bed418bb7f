"""Results in a notebook: the answer and a table, without scripts and without external references."""

from __future__ import annotations

from html import escape

from normkit.study.analysis.results import Results
from normkit.study.report.writing import places, table
from normkit.study.report.writing.answer import answer

_COLOURS = {"good": "#00846a", "bad": "#c0442a", "open": "#7a8290"}
"""Visible on light and dark backgrounds, because a notebook does not say which one it has."""


def render(found: Results, lang: str = "en") -> str:
    """The answer, the table of the terminal, and the meaning of its headings."""
    style = "padding:0.2em 0.9em 0.2em 0;text-align:left;background:none"
    head = "".join(f'<th scope="col" style="{style}">{escape(text)}</th>' for text in table.headings(found, lang))
    lines = []
    for row in table.rows(found, lang):
        strong = f";color:{_COLOURS[places.TONES[row.place]]};font-weight:600"
        texts = [
            f'<td style="{style}{strong if name == "place" else ""}">{escape(text)}</td>'
            for name, text in row.texts._asdict().items()
        ]
        lines.append(f"<tr>{''.join(texts)}</tr>")
    return (
        f'<div lang="{lang}"><p style="font-size:1.1em;max-width:60em">{escape(answer(found).to(lang))}</p>'
        f'<table style="border-collapse:collapse;font-variant-numeric:tabular-nums"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
        f'<p style="font-size:0.85em;max-width:60em;opacity:0.75">{escape(table.note(found).to(lang))}</p></div>'
    )
