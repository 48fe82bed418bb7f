"""The picture of a run: norms as rows, time as columns, one figure as colour in a single SVG file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from normkit.errors import ArgumentError, StateError, nearest
from normkit.tools.watch.record import FIGURES, NormRecord

COLUMNS = 100
"""More steps than this are thinned evenly."""

TOOLTIPS = 4000
"""Up to this many cells have a tooltip with the number; with more only rows have one, to keep the file small."""

# viridis at nine even places: even steps of lightness, also for the colour blind and in print.
_SCALE = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")
_STYLE = (
    "<style>svg{color:#1f2328;font-family:system-ui,sans-serif;font-size:11px}text{fill:currentColor}"
    "@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
)
_ROW, _WIDTH, _LETTER, _TOP = 16, 560, 6.6, 34


def draw(records: Sequence[NormRecord], value: str, log: bool | None = None) -> str:
    """Draw one figure of all records.

    Args:
        records: of any steps and norms.
        value: name of the figure, as `NormRecord` has it.
        log: whether colours follow the logarithm; None for where all are positive and span a factor above 30.

    Returns:
        One ``<svg>`` element. Cells without a number are left open, those with inf or nan are red.

    Raises:
        ArgumentError: no such figure, or a logarithmic scale for numbers that are not positive.
        StateError: no records, or none with this figure.
    """
    if value not in FIGURES:
        raise ArgumentError(f"value must be a figure of the records, got {value!r}: {nearest(value, FIGURES)}")
    cells = {(_row(record), record.step): getattr(record, value) for record in records}
    finite = [float(v) for v in cells.values() if v is not None and math.isfinite(v)]
    if not finite:
        why = "there is no record yet" if not records else f"no record has a finite {value}"
        raise StateError(f"a heat map needs numbers, {why}: train at least one watched step, and close the watch")
    scale = _Scale(finite, log)
    # In the order in which the norms are called.
    rows = list(dict.fromkeys(row for row, _ in cells))
    every = sorted({step for _, step in cells})
    steps = (
        every if len(every) <= COLUMNS else [every[round(i * (len(every) - 1) / (COLUMNS - 1))] for i in range(COLUMNS)]
    )
    left = 12 + _LETTER * max(len(row) for row in rows)
    wide = min(_WIDTH / len(steps), 40)
    bottom = _TOP + _ROW * len(rows)
    tooltips = len(rows) * len(steps) <= TOOLTIPS
    body = []
    for i, row in enumerate(rows):
        y = _TOP + _ROW * i
        marks = "".join(
            _cell(scale, cells.get((row, step)), j * wide, wide, f"{step}: " if tooltips else "")
            for j, step in enumerate(steps)
        )
        body.append(f'<text x="{_n(left - 6)}" y="{y + 12}" text-anchor="end">{escape(row)}</text>')
        body.append(f'<g transform="translate({_n(left)} {y})"><title>{escape(row)}</title>{marks}</g>')
    body.append(_times(steps, left, wide, bottom))
    width, height = left + wide * len(steps) + 16, bottom + 66
    body.append(_legend(scale, left, bottom + 36))
    width = max(width, left + _LEGEND + 60)
    title = f"{value} of {len(rows)} norms, steps {steps[0]} to {steps[-1]}"
    label = f"{title}; colours from {scale.low:.3g} to {scale.high:.3g}{', logarithmic' if scale.log else ''}"
    size = f'viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" height="{_n(height)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="normkit-watch" {size} role="img" '
        f'aria-label="{escape(label)}"><title>{escape(label)}</title>{_STYLE}'
        f'<text x="{_n(left)}" y="20" font-size="14" font-weight="600">{escape(title)}</text>{"".join(body)}</svg>\n'
    )


class _Scale:
    """Colours for numbers."""

    def __init__(self, finite: Sequence[float], log: bool | None) -> None:
        self.low, self.high = min(finite), max(finite)
        if log and self.low <= 0:
            raise ArgumentError(f"a logarithmic scale needs positive numbers, got {self.low:.3g}: leave log=False")
        self.log = self.low > 0 and self.high > 30 * self.low if log is None else log

    def place(self, value: float) -> float:
        """Between 0 and 1."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return 0.5 if high == low else (at - low) / (high - low)

    def colour(self, value: float) -> str:
        """As in CSS."""
        at = self.place(value) * (len(_SCALE) - 1)
        index = min(int(at), len(_SCALE) - 2)
        ends = [[int(_SCALE[index + k][i : i + 2], 16) for i in (0, 2, 4)] for k in (0, 1)]
        return "#" + "".join(f"{round(a + (b - a) * (at - index)):02x}" for a, b in zip(*ends, strict=True))


_LEGEND = 200


def _legend(scale: _Scale, x: float, y: float) -> str:
    """The colours from low to high, with both ends and the middle named."""
    stops = "".join(
        f'<stop offset="{_n(100 * i / (len(_SCALE) - 1))}%" stop-color="#{colour}"/>' for i, colour in enumerate(_SCALE)
    )
    middle = math.sqrt(scale.low * scale.high) if scale.log else (scale.low + scale.high) / 2
    words = "".join(
        f'<text x="{_n(x + at * _LEGEND)}" y="{_n(y + 26)}" text-anchor="middle">{number:.3g}</text>'
        for at, number in ((0, scale.low), (0.5, middle), (1, scale.high))
    )
    return (
        f'<linearGradient id="scale">{stops}</linearGradient>'
        f'<rect x="{_n(x)}" y="{_n(y)}" width="{_LEGEND}" height="10" fill="url(#scale)"/>{words}'
    )


def _cell(scale: _Scale, value: float | None, x: float, wide: float, step: str) -> str:
    if value is None:
        return ""
    colour = scale.colour(value) if math.isfinite(value) else "#d62728"
    tooltip = f"<title>{step}{value:.3g}</title>" if step else ""
    return f'<rect x="{_n(x)}" width="{_n(wide + 0.2)}" height="{_ROW - 1}" fill="{colour}">{tooltip}</rect>'


def _times(steps: Sequence[int], left: float, wide: float, y: float) -> str:
    """A few steps below their columns."""
    letters = _LETTER * (len(str(steps[-1])) + 2)
    apart = max(1, math.ceil(letters / wide), math.ceil(len(steps) / 8))
    words = "".join(
        f'<text x="{_n(left + (i + 0.5) * wide)}" y="{_n(y + 13)}" text-anchor="middle">{step}</text>'
        for i, step in enumerate(steps)
        if i % apart == 0
    )
    return words + f'<text x="{_n(left - 6)}" y="{_n(y + 13)}" text-anchor="end">step</text>'


def _row(record: NormRecord) -> str:
    return f"{record.norm} (call {record.call + 1})" if record.call else record.norm


def _n(value: float) -> str:
    """With at most one decimal; a picture is the same text on every machine."""
    return f"{round(value, 1) + 0.0:g}"
