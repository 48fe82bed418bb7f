"""Draws a plot as SVG inside a page: its colours are variables of the page, its font is that of the page.

Every mark of a method has the attribute ``data-m``, so that the page can hide the method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from normkit import catalog

Point = tuple[float, float]
MARKERS = {"none": "circle", "unchanged": "ring"}
MARKERS |= {method.name: method.mark.shape for method in catalog.METHODS if method.mark}
"""A shape for each method in addition to its colour, for readers who cannot distinguish the colours."""


def shape_of(variant: str) -> str:
    """The shape of a method; all its placements have it.

    >>> shape_of("unchanged:post")
    'ring'
    """
    return MARKERS[variant.partition(":")[0]]


@dataclass(frozen=True)
class Scale:
    """Converts values to units of the picture; a log scale has positive values only."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            low, high, value = math.log(self.low), math.log(self.high), math.log(max(value, self.low * 1e-3))
        else:
            low, high = self.low, self.high
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + (self.end - self.start) * share

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the scale."""
        if self.log:
            return self._log_ticks(count)
        rough = (self.high - self.low) / max(1, count)
        if rough <= 0 or not math.isfinite(rough):
            return [self.low]
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]

    def _log_ticks(self, count: int) -> list[float]:
        if self.high / self.low < 2.5:
            # Too narrow for powers of ten.
            return Scale(self.low, self.high, 0, 1).ticks(count)
        powers = range(math.floor(math.log10(self.low)) - 1, math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [d * 10.0**p for p in powers for d in digits]
            found = [v for v in found if self.low * 0.999 <= v <= self.high * 1.001]
            if len(found) <= count + 1:
                return found
        return found[:: math.ceil(len(found) / count)]


def around(
    values: Iterable[float], *, log: bool = False, margin: float = 0.06, least: float = 0.0
) -> tuple[float, float]:
    """Ends of a scale that contains these values with a margin; `least` is the smallest width."""
    found = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not found:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(found), max(found)
    if log:
        ratio = max(high / low, 1.6)
        middle = math.sqrt(low * high)
        ends = middle / math.sqrt(ratio), middle * math.sqrt(ratio)
        return ends[0] / ratio**margin, ends[1] * ratio**margin
    width = max(high - low, least, 1e-12 + 1e-3 * abs(high))
    middle = (low + high) / 2
    return middle - width * (0.5 + margin), middle + width * (0.5 + margin)


SQUEEZED = 2.5
"""An axis is cut if the others then have this many times the room."""


def cut(
    rows: Sequence[Sequence[float]], means: Sequence[float], downward: bool = False, most: float = 1 / 8
) -> float | None:
    """The value at which an axis should end, because outliers beyond it would squeeze the rest; None to show all.

    Args:
        rows: the values of each row; at most a third of the rows lie beyond the end.
        means: for each row the value that is marked; those of the other rows are never beyond.
        downward: outliers have low values instead of high ones.
        most: the largest share of the values of the other rows beyond the end.

    >>> cut([[0.1, 0.12], [0.11, 0.13], [0.8, 0.9]], [0.11, 0.12, 0.85])
    0.13
    >>> cut([[0.1, 0.12], [0.11, 0.13], [0.2, 0.21]], [0.11, 0.12, 0.2]) is None
    False
    """
    sign = -1 if downward else 1
    table = [(sign * mean, [sign * v for v in row if math.isfinite(v)]) for row, mean in zip(rows, means, strict=True)]
    kept = sorted((mean, values) for mean, values in table if values and math.isfinite(mean))
    if not kept:
        return None
    end = None
    whole = _width(kept)
    for dropped in range(1, len(kept) // 3 + 1):
        if whole > SQUEEZED * _width(kept[:-dropped]) > 0:
            kept = kept[:-dropped]
            end = max(v for _, values in kept for v in values)
            break
    found = sorted(v for _, values in kept for v in values)
    top = max(mean for mean, _ in kept)
    for beyond in range(1, int(most * len(found)) + 1):
        limit = max(found[-1 - beyond], top)
        if found[-1] - found[0] > SQUEEZED * (limit - found[0]) > 0:
            end = limit
            break
    return None if end is None else sign * end


def _width(rows: Sequence[tuple[float, Sequence[float]]]) -> float:
    values = [v for _, row in rows for v in row]
    return max(values) - min(values)


@dataclass
class Plot:
    """A picture under construction; `x` and `y` place values on it."""

    width: float
    height: float
    x: Scale
    y: Scale
    parts: list[str] = field(default_factory=list)

    def grid_x(self, ticks: Sequence[float], written: Callable[[float], str], label: str = "") -> None:
        """Vertical lines, numbers below them, and a label."""
        bottom, top = max(self.y.start, self.y.end), min(self.y.start, self.y.end)
        path = "".join(f"M{_n(self.x(v))} {_n(top)}V{_n(bottom)}" for v in ticks)
        self.parts.append(f'<path class="grid" d="{path}"/>')
        for value in ticks:
            self.text(self.x(value), bottom + 15, written(value), "middle")
        if label:
            self.text((self.x.start + self.x.end) / 2, bottom + 33, label, "middle", css="axis")

    def grid_y(self, ticks: Sequence[float], written: Callable[[float], str], label: str = "") -> None:
        """Horizontal lines, numbers to their left, and a label above."""
        path = "".join(f"M{_n(self.x.start)} {_n(self.y(v))}H{_n(self.x.end)}" for v in ticks)
        self.parts.append(f'<path class="grid" d="{path}"/>')
        for value in ticks:
            self.text(self.x.start - 6, self.y(value) + 4, written(value), "end")
        if label:
            self.text(2, min(self.y.start, self.y.end) - 9, label, "start", css="axis")

    def text(
        self,
        x: float,
        y: float,
        text: str,
        anchor: Literal["start", "middle", "end"] = "start",
        css: str = "",
        method: str = "",
    ) -> None:
        """A line of text."""
        self.parts.append(
            f'<text{_class(css)}{_of(method)} x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def line(self, points: Sequence[Point], colour: str, method: str = "", css: str = "line") -> None:
        """A line through values."""
        if len(points) > 1:
            self.parts.append(
                f'<path class="{css}"{_of(method)} style="stroke:{colour}" d="M{"L".join(map(self._at, points))}"/>'
            )

    def band(
        self, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], colour: str, method: str
    ) -> None:
        """The area between two lines."""
        if len(xs) > 1:
            there = "L".join(map(self._at, zip(xs, highs, strict=True)))
            back = "L".join(map(self._at, reversed(list(zip(xs, lows, strict=True)))))
            self.parts.append(f'<path class="band"{_of(method)} style="fill:{colour}" d="M{there}L{back}Z"/>')

    def dots(self, points: Sequence[Point], colour: str, method: str = "", radius: float = 2.2) -> None:
        """Small dots, one path for all."""
        r = _n(radius)
        path = "".join(
            f"M{_n(self.x(x) - radius)} {_n(self.y(y))}a{r} {r} 0 1 0 {_n(2 * radius)} 0"
            f"a{r} {r} 0 1 0 {_n(-2 * radius)} 0"
            for x, y in points
        )
        if path:
            self.parts.append(f'<path class="dots"{_of(method)} style="fill:{colour}" d="{path}"/>')

    def mark(self, point: Point, shape: str, colour: str, method: str = "", size: float = 4.4, title: str = "") -> None:
        """One marker, with a title for the pointer."""
        x, y = self.x(point[0]), self.y(point[1])
        text = f"<title>{escape(title)}</title>" if title else ""
        self.parts.append(f'<g{_of(method)} style="color:{colour}">{text}{marker(x, y, shape, size)}</g>')

    def segment(self, start: Point, end: Point, colour: str, method: str = "", css: str = "whisker") -> None:
        """A straight line between two values."""
        self.parts.append(
            f'<path class="{css}"{_of(method)} style="stroke:{colour}" d="M{self._at(start)}L{self._at(end)}"/>'
        )

    def zone(self, low: float, high: float, css: str = "zone") -> None:
        """A vertical band between two values of x, over the whole height."""
        top, bottom = sorted((self.y.start, self.y.end))
        left, right = sorted((self.x(low), self.x(high)))
        self.parts.append(
            f'<rect class="{css}" x="{_n(left)}" y="{_n(top)}" width="{_n(right - left)}" height="{_n(bottom - top)}"/>'
        )

    def beyond(self, row: float, text: str, colour: str, method: str = "", downward: bool = False) -> None:
        """An arrow at the cut end of the horizontal axis, with the value that lies beyond it."""
        x, y = (self.x.start, self.y(row)) if downward else (self.x.end, self.y(row))
        tip = -7 if downward else 7
        path = f"M{_n(x)} {_n(y)}l{-tip} -4.5v9Z"
        self.parts.append(f'<path class="mk"{_of(method)} style="color:{colour}" d="{path}"/>')
        self.text(x - 1.6 * tip, y + 4, text, "start" if downward else "end", css="halo", method=method)

    def beyond_y(self, x: float, value: float, colour: str, method: str = "", text: str = "") -> None:
        """An arrow at the cut end of the vertical axis, and a double stroke on the axis."""
        down = value < self.y.low
        at, y, tip = self.x(x), self.y(self.y.low if down else self.y.high), 7 if down else -7
        path = f"M{_n(at)} {_n(y)}l-4.5 {-tip}h9Z"
        self.parts.append(f'<path class="mk"{_of(method)} style="color:{colour}" d="{path}"/>')
        if text:
            self.text(at + 8, y - tip, text, css="halo", method=method)
        strokes = "".join(f"M{_n(self.x.start - 5)} {_n(y + shift + 2)}l10 -4" for shift in (-2, 2))
        self.parts.append(f'<path class="cut" d="{strokes}"/>')

    def broken_x(self, downward: bool = False) -> None:
        """A double stroke at the end of the horizontal axis that is cut."""
        x, bottom = self.x.start if downward else self.x.end, max(self.y.start, self.y.end)
        path = "".join(f"M{_n(x + shift - 2)} {_n(bottom + 5)}l4 -10" for shift in (-2, 2))
        self.parts.append(f'<path class="cut" d="{path}"/>')

    def _at(self, point: Point) -> str:
        return f"{_n(self.x(point[0]))} {_n(self.y(point[1]))}"

    def svg(self, label: str, css: str = "plot") -> str:
        """The picture; `label` describes it to readers who cannot see it."""
        name = escape(label)
        return (
            f'<svg class="{css}" viewBox="0 0 {_n(self.width)} {_n(self.height)}" role="img" aria-label="{name}">'
            f"<title>{name}</title>{''.join(self.parts)}</svg>"
        )


def marker(x: float, y: float, shape: str, size: float = 4.4) -> str:
    """A marker in the current colour."""
    r = size
    match shape:
        case "circle":
            return f'<circle class="mk" cx="{_n(x)}" cy="{_n(y)}" r="{_n(r)}"/>'
        case "ring":
            return f'<circle class="mo" cx="{_n(x)}" cy="{_n(y)}" r="{_n(r * 0.85)}"/>'
        case "square":
            return _filled(x, y, ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)), r)
        case "up":
            return _filled(x, y, ((0, -1.1), (1, 0.8), (-1, 0.8)), r)
        case "down":
            return _filled(x, y, ((0, 1.1), (1, -0.8), (-1, -0.8)), r)
        case "diamond":
            return _filled(x, y, ((0, -1.15), (1.15, 0), (0, 1.15), (-1.15, 0)), r)
        case "plus":
            return _stroked(x, y, (((-1.1, 0), (1.1, 0)), ((0, -1.1), (0, 1.1))), r)
        case "cross":
            return _stroked(x, y, (((-0.85, -0.85), (0.85, 0.85)), ((-0.85, 0.85), (0.85, -0.85))), r)
    return _filled(x, y, ((-0.4, -1.1), (0.4, -1.1), (0.4, 1.1), (-0.4, 1.1)), r)


def _filled(x: float, y: float, corners: Sequence[Point], r: float) -> str:
    return f'<path class="mk" d="M{"L".join(f"{_n(x + r * a)} {_n(y + r * b)}" for a, b in corners)}Z"/>'


def _stroked(x: float, y: float, lines: Sequence[tuple[Point, Point]], r: float) -> str:
    path = "".join(f"M{_n(x + r * a)} {_n(y + r * b)}L{_n(x + r * c)} {_n(y + r * d)}" for (a, b), (c, d) in lines)
    return f'<path class="mo" d="{path}"/>'


def _of(method: str) -> str:
    return f' data-m="{method}"' if method else ""


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""


def _n(value: float) -> str:
    """At most one decimal."""
    return f"{round(value, 1) + 0.0:g}"
