"""A comparison in a notebook: the answer and a small table, without script and without outside reference."""

from __future__ import annotations

from html import escape

from normkit.study.comparison import STANDINGS, Comparison
from normkit.study.report.methods import TONES

_COLOURS = {"good": "#00846a", "bad": "#c0442a", "open": "#7a8290"}
"""Seen on light and on dark ground alike: a notebook does not say which it has."""

STANDING = 4
"""The column of the verdict."""


def render(found: Comparison, lang: str = "en") -> str:
    """The answer, the table of the terminal, and what its headings mean."""
    style = "padding:0.2em 0.9em 0.2em 0;text-align:left;background:none"
    head = "".join(f'<th scope="col" style="{style}">{escape(text)}</th>' for text in found.headings(lang))
    places = {text.to(lang): TONES[key] for key, text in STANDINGS.items()}
    lines = []
    for row in found.rows(lang):
        tone = _COLOURS[places[row[STANDING]]]
        texts = [
            f'<td style="{style};color:{tone};font-weight:600">{escape(text)}</td>'
            if place == STANDING
            else f'<td style="{style}">{escape(text)}</td>'
            for place, text in enumerate(row)
        ]
        lines.append(f"<tr>{''.join(texts)}</tr>")
    return (
        f'<div lang="{lang}"><p style="font-size:1.1em;max-width:60em">{escape(found.answer.to(lang))}</p>'
        f'<table style="border-collapse:collapse;font-variant-numeric:tabular-nums"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
        f'<p style="font-size:0.85em;max-width:60em;opacity:0.75">{escape(found.note.to(lang))}</p></div>'
    )
