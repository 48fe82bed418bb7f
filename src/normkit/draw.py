"""The picture of a region: the cube of batch, channels and positions, with one region coloured.

A picture is an SVG string that refers to no other file. Lines and letters have the colour of the text around it, so it
suits light and dark pages. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from normkit import catalog
from normkit.catalog import Method, Text
from normkit.errors import ArgumentError
from normkit.pattern import ELLIPSIS, Axis, Region, parse

Cell = tuple[int, int, int]
"""Index of the sample, the channel and the position; (0, 0, 0) is the corner that all three visible faces share."""
Point = tuple[float, float]

_RISE = 0.5
_RUN = math.sqrt(1 - _RISE**2)
_MARGIN = 6.0
# An upper estimate of the width of a letter, since no font can be measured here.
_LETTER = 8.5
# Blue and orange stay distinct with every kind of colour blindness. Shades of the top, left and right face.
_SHADES = {"region": ("#4fa3d9", "#0072b2", "#00507d"), "centre": ("#ffc24d", "#e69f00", "#b37b00")}
_PLAIN = ("0.04", "0.09", "0.16")
# A standalone file has no text around it, so it sets the colour of its lines and letters.
_STYLE = (
    "<style>svg{color:#1f2328;font-family:system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
)


@dataclass(frozen=True)
class _Picture:
    """A drawing and the size of its box. A caption belongs below `middle`, the middle of the cube without labels."""

    width: float
    height: float
    middle: float
    body: str


@dataclass(frozen=True)
class _Cuboid:
    """Samples x channels x positions; `colour` gives the name of a cell's shade, or "" for none."""

    sizes: Cell
    labels: tuple[str, str, str]
    colour: Callable[[int, int, int], str]
    side: float = 16.0

    def point(self, n: float, c: float, p: float) -> Point:
        """A corner of a cell on the page: samples go to the right and back, channels to the left and back."""
        return (n - c) * _RUN * self.side, (p - (n + c) * _RISE) * self.side

    def picture(self) -> _Picture:
        """The three visible faces, and a label along an edge of each."""
        n, c, p = self.sizes
        (x0, y0), (x1, y1), (x2, y2) = self.point(n / 2, 0, p), self.point(0, c / 2, p), self.point(0, c, p / 2)
        places = ((x0 + 7, y0 + 13, "start"), (x1 - 7, y1 + 13, "end"), (x2 - 6, y2 + 4, "end"))
        labels = [(x, y, text, anchor) for text, (x, y, anchor) in zip(self.labels, places, strict=True) if text]
        left, right = self.point(0, c, 0)[0], self.point(n, 0, 0)[0]
        starts = [x - _LETTER * len(text) for x, _, text, anchor in labels if anchor == "end"]
        ends = [x + _LETTER * len(text) for x, _, text, anchor in labels if anchor == "start"]
        to_cube = _MARGIN + left - min([left, *starts])
        to_base = _MARGIN - self.point(n, c, 0)[1]
        return _Picture(
            to_cube + max([right, *ends]) - left + _MARGIN,
            to_base + max([self.point(0, 0, p)[1], *(y for _, y, *_ in labels)]) + _MARGIN,
            to_cube + (right - left) / 2,
            f'<g transform="translate({_number(to_cube - left)} {_number(to_base)})">'
            f"{''.join(self._faces())}{''.join(_text(*label) for label in labels)}</g>",
        )

    def _faces(self) -> Iterable[str]:
        n, c, p = self.sizes
        faces: tuple[tuple[list[Cell], Cell, Cell], ...] = (
            ([(i, j, 0) for i in range(n) for j in range(c)], (1, 0, 0), (0, 1, 0)),
            ([(0, j, k) for j in range(c) for k in range(p)], (0, 1, 0), (0, 0, 1)),
            ([(i, 0, k) for i in range(n) for k in range(p)], (1, 0, 0), (0, 0, 1)),
        )
        for face, (cells, along, down) in enumerate(faces):
            quads: dict[str, list[str]] = {}
            for cell in cells:
                quads.setdefault(self.colour(*cell), []).append(self._quad(cell, along, down))
            # Plain cells come first, so that their lines do not cover coloured cells.
            for colour in sorted(quads):
                yield f'<path {_paint(colour, face)} d="{"".join(quads[colour])}"/>'

    def _quad(self, cell: Cell, along: Cell, down: Cell) -> str:
        corners = [
            [cell[i] + a * along[i] + d * down[i] for i in range(3)] for a, d in ((0, 0), (1, 0), (1, 1), (0, 1))
        ]
        return "M" + "L".join(" ".join(map(_number, self.point(*corner))) for corner in corners) + "Z"


def svg(subject: str, *, title: str | None = None, standalone: bool = False) -> str:
    """Draw the region of a method or a pattern.

    The coloured cells share one mean and one variance; other regions of the
    same form fill the rest of the cube. The numbers of samples, channels and positions are only for illustration; sizes
    above 4 are drawn as 4.

    Args:
        subject: a name or alias from the catalog, or a pattern such as ``"b (g [c]) [...]"``.
        title: text for screen readers; None makes it from the subject.
        standalone: True for a file, which then follows the light or dark mode of its reader; False for a part of a
            page, in the colour of the text around it.

    Returns:
        One ``<svg>`` element.

    Raises:
        PatternError: the pattern is wrong; a caret shows where.
        ArgumentError: no method of that name.

    >>> svg("b c [...]").startswith('<svg xmlns="http://www.w3.org/2000/svg" class="normkit-region"')
    True
    """
    found = _look_up(subject)
    return _document(found.picture, found.title if title is None else title, standalone)


def row(subjects: Sequence[str], *, lang: str = "en", standalone: bool = False) -> str:
    """Draw several regions side by side, each with its name and pattern below.

    Args:
        subjects: as in `svg`.
        lang: language of the names, ``"en"`` or ``"zh"``.
        standalone: as in `svg`.

    Returns:
        One ``<svg>`` element.

    Raises:
        PatternError, ArgumentError: as in `svg`, and if there is nothing to draw.

    >>> picture = row(["batch_norm", "b [c] ..."], lang="zh")
    >>> "批归一化" in picture, "b [c] ..." in picture
    (True, True)
    """
    if not subjects:
        raise ArgumentError("a row of pictures needs at least one name or pattern, got none: draw 'batch_norm'")
    found = [_look_up(subject) for subject in subjects]
    height = max(subject.picture.height for subject in found)
    body, x = "", 0.0
    for subject in found:
        picture = subject.picture
        spare = max(0.0, _LETTER * max(len(subject.name), len(subject.note)) - picture.width)
        body += (
            f'<g transform="translate({_number(x + spare / 2)} 0)">'
            f'<g transform="translate(0 {_number(height - picture.height)})">{picture.body}</g>'
            f"{_text(picture.middle, height + 20, subject.name.to(lang), 'middle', font_weight='600', font_size='14')}"
            f"{_text(picture.middle, height + 38, subject.note, 'middle', font_family='monospace', opacity='0.75')}</g>"
        )
        x += picture.width + spare
    return _document(_Picture(x, height + 46, x / 2, body), "; ".join(subject.title for subject in found), standalone)


@dataclass(frozen=True)
class _Subject:
    """A picture, the name and the note below it, and its title for screen readers."""

    picture: _Picture
    name: Text
    note: str
    title: str


def _look_up(subject: str) -> _Subject:
    method = _method(subject)
    if method is None:
        title = f"{subject}: the coloured cells share one mean and one variance"
        return _Subject(_cube(parse(subject)).picture(), Text("", ""), subject, title)
    if method.pattern is None:
        note, picture = _WITHOUT_REGION[method.name]
        return _Subject(picture(), method.title, note, f"{method.title}: {method.formula}")
    title = f"{method.title}: one mean and one variance per {method.statistics}"
    return _Subject(_cube(parse(method.pattern)).picture(), method.title, method.pattern, title)


def _method(subject: str) -> Method | None:
    """The method of that name, or None for a pattern; several words that name nothing are a pattern too."""
    if any(bracket in subject for bracket in "[]()"):
        return None
    try:
        return catalog.find(subject)
    except ArgumentError:
        if " " in subject:
            return None
        raise


def _cube(region: Region) -> _Cuboid:
    """Sort the dimensions of a region into samples, channels and positions."""
    features = [dim for dim in region.dims if Region((dim,)).has_features]
    others = [dim for dim in region.dims if dim not in features]
    samples = others[:1] if region.dims[0] not in features else []
    # A leading ellipsis means samples and positions at once.
    positions = others[len(samples) :] or [dim for dim in samples if dim[0].name == ELLIPSIS]
    roles = [[axis for dim in dims for axis in dim] for dims in (samples, features, positions)]
    sizes = [_sizes(axes, total) for axes, total in zip(roles, (4, 6, 4), strict=True)]
    labels = (_label(roles[0], "N"), "C" if features else "", _label(roles[2], "H·W"))

    def colour(*cell: int) -> str:
        inside = all(_is_in_first(*role) for role in zip(roles, sizes, cell, strict=True))
        return "region" if inside else ""

    n, c, p = (math.prod(part) for part in sizes)
    return _Cuboid((n, c, p), labels, colour)


def _sizes(axes: Sequence[Axis], total: int) -> list[int]:
    """How many cells to draw for each axis: its size in the pattern, at most 4; else about `total` for all axes."""
    parts = [0 if axis.size is None else min(axis.size, 4) for axis in axes]
    for index, part in enumerate(parts):
        if not part:
            known = math.prod(part or 2 for place, part in enumerate(parts) if place != index)
            parts[index] = max(2, total // known)
    return parts


def _is_in_first(axes: Sequence[Axis], sizes: Sequence[int], index: int) -> bool:
    """Whether an index along a role is in the first region, in which every kept axis has index 0."""
    for axis, size in zip(reversed(axes), reversed(sizes), strict=True):
        index, place = divmod(index, size)
        if place and not axis.reduced:
            return False
    return True


def _label(axes: Sequence[Axis], usual: str) -> str:
    names = [usual if axis.name in (ELLIPSIS, "b", "n") else axis.name.upper() for axis in axes]
    return "·".join(names)


def _local_response_norm() -> _Picture:
    """The window of neighbouring channels, and the value in its middle that is divided."""

    def colour(n: int, c: int, p: int) -> str:
        if n or p or not 1 <= c <= 3:
            return ""
        return "centre" if c == 2 else "region"

    return _Cuboid((4, 6, 4), ("N", "C", "H·W"), colour).picture()


def _value() -> _Picture:
    """One value by itself."""
    return _Cuboid((4, 6, 4), ("N", "C", "H·W"), lambda n, c, p: "" if n or c or p else "region").picture()


def _filter() -> _Picture:
    """One filter of a convolution's weight."""
    return _Cuboid((3, 4, 3), ("out", "in", "k·k"), lambda n, c, p: "" if n else "region", side=12.0).picture()


def _weight() -> _Picture:
    """The whole weight of a convolution."""
    return _Cuboid((3, 4, 3), ("out", "in", "k·k"), lambda *cell: "region", side=12.0).picture()


def _weight_norm() -> _Picture:
    """One filter of a convolution's weight, and the same filter as an arrow: a direction and a length."""
    weight = _filter()
    height = _local_response_norm().height  # as tall as the cubes next to it
    radius, length, angle = 40.0, 72.0, math.radians(-62)
    across, down = math.cos(angle), math.sin(angle)
    x, y = weight.width + radius, height / 2 + 20
    end = (x + length * across, y + length * down)
    shapes = (
        f'<g transform="translate(0 {_number(y + radius - weight.height)})">{weight.body}</g>',
        f'<circle cx="{_number(x)}" cy="{_number(y)}" r="{_number(radius)}" fill="none" stroke="currentColor" '
        'stroke-opacity="0.5" stroke-dasharray="3 3"/>',
        _arrow((x, y), end, _SHADES["centre"][1]),
        _arrow((x, y), (x + radius * across, y + radius * down), _SHADES["region"][1]),
        _text(end[0] + 5, end[1] + 12, "g", "start", font_style="italic"),
        _text(x, y + 19, "v / ‖v‖", "middle", font_style="italic"),
    )
    width = x + radius + _MARGIN
    return _Picture(width, height, width / 2, "".join(shapes))


_WITHOUT_REGION: dict[str, tuple[str, Callable[[], _Picture]]] = {
    "local_response_norm": ("size=3", _local_response_norm),
    "weight_norm": ("w = g * v / ‖v‖", _weight_norm),
    "weight_standardization": ("w = (v - mean) / std", _filter),
    "spectral_norm": ("w = v / sigma(v)", _weight),
}
_WITHOUT_REGION |= {
    method.name: (method.formula.removesuffix(" * weight + bias"), _value)
    for method in catalog.METHODS
    if method.acts_on == "values"
}
"""For methods without a pattern: the note below the picture, and the picture."""


def _arrow(start: Point, end: Point, colour: str) -> str:
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dy)
    ux, uy = dx / length, dy / length
    neck = (end[0] - 9 * ux, end[1] - 9 * uy)
    head = (end, (neck[0] - 4.5 * uy, neck[1] + 4.5 * ux), (neck[0] + 4.5 * uy, neck[1] - 4.5 * ux))
    points = " ".join(",".join(map(_number, point)) for point in head)
    line = " ".join(f'{key}="{_number(v)}"' for key, v in zip(("x1", "y1", "x2", "y2"), (*start, *neck), strict=True))
    return f'<line {line} stroke="{colour}" stroke-width="3"/><polygon points="{points}" fill="{colour}"/>'


def _paint(colour: str, face: int) -> str:
    if not colour:
        fill = f'fill="currentColor" fill-opacity="{_PLAIN[face]}" stroke="currentColor" stroke-opacity="0.4"'
    else:
        fill = f'fill="{_SHADES[colour][face]}" stroke="#fff" stroke-opacity="0.75"'
    return f'class="{colour or "plain"}" {fill} stroke-width="0.8" stroke-linejoin="round"'


def _text(x: float, y: float, text: str, anchor: str, **style: str) -> str:
    if not text:
        return ""
    attributes = {"text_anchor": anchor, "font_size": "12", "fill": "currentColor"} | style
    words = " ".join(f'{key.replace("_", "-")}="{value}"' for key, value in attributes.items())
    return f'<text x="{_number(x)}" y="{_number(y)}" {words}>{escape(text)}</text>'


def _document(picture: _Picture, title: str, standalone: bool) -> str:
    width, height = (_number(math.ceil(size)) for size in (picture.width, picture.height))
    name = escape(title)
    size = f' width="{width}" height="{height}"' if standalone else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="normkit-region" viewBox="0 0 {width} {height}"{size} '
        f'role="img" aria-label="{name}"><title>{name}</title>{_STYLE if standalone else ""}{picture.body}</svg>\n'
    )


def _number(value: float) -> str:
    """The number with at most one decimal, so that a picture is the same text on every machine."""
    return f"{round(value, 1) + 0.0:g}"
