"""Pictures are well-formed, show exactly the region, and stay inside their frame."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normkit import draw
from normkit.catalog import METHODS
from normkit.errors import ArgumentError, PatternError

SVG = "{http://www.w3.org/2000/svg}"

SEEN = {
    "[b] c [...]": 4 + 4 + 16,
    "b [c ...]": 6 + 24 + 4,
    "b c [...]": 1 + 4 + 4,
    "b (g [c]) [...]": 2 + 8 + 4,
    "b [...] c": 1 + 4 + 4,
    "[b] (g [c]) [...]": 8 + 8 + 16,
    "... [c]": 6 + 6 + 1,
    "b [c] ...": 6 + 6 + 1,
    "b ([g] c) [...]": 3 + 12 + 4,
    "b [c] h [w]": 6 + 12 + 2,
    "b (g=2 [c]) ...": 3 + 3 + 1,
    "[b c ...]": 24 + 24 + 16,
}
"""Coloured faces on top, left and right of a cube of 4 samples, 6 channels and 4 positions, counted by hand."""


def faces(svg: str, kind: str) -> int:
    root = ElementTree.fromstring(svg)
    return sum(path.get("d", "").count("M") for path in root.iter(f"{SVG}path") if path.get("class") == kind)


@pytest.mark.parametrize(("pattern", "count"), SEEN.items())
def test_exactly_the_region_is_coloured(pattern: str, count: int):
    picture = draw.svg(pattern)
    assert faces(picture, "region") == count
    assert faces(picture, "plain") == 24 + 24 + 16 - count


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_has_a_picture(method):
    picture = draw.svg(method.name)
    assert faces(picture, "region")
    if method.pattern:
        assert faces(picture, "region") == SEEN[method.pattern]
    label = ElementTree.fromstring(picture).get("aria-label")
    assert label.startswith(method.title)


def test_a_window_shows_the_value_it_divides():
    picture = draw.svg("LRN")
    assert (faces(picture, "centre"), faces(picture, "region")) == (2, 4)


def test_sizes_that_are_given_are_drawn():
    assert faces(draw.svg("b (g=4 [c]) [...]"), "plain") == 8 * 4 + 8 * 4 + 4 * 4 - (2 + 8 + 4)
    assert faces(draw.svg("[b] c"), "plain") == 6 * 4 + 6 + 4 - (4 + 1 + 4)


def texts(svg: str) -> list[str]:
    return [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("pattern", "labels"),
    [
        ("b c [...]", ["N", "C", "H·W"]),
        ("b t [c]", ["N", "C", "T"]),
        ("... [c]", ["N", "C", "H·W"]),
        ("b [c] h w", ["N", "C", "H·W"]),
        ("b [c]", ["N", "C"]),
        ("h [w]", ["H", "W"]),
    ],
)
def test_edges_are_labelled(pattern: str, labels: list[str]):
    assert texts(draw.svg(pattern)) == labels


def walk(element: ElementTree.Element, dx: float = 0.0, dy: float = 0.0):
    """Every point of every shape, with the translations of its groups applied."""
    shift = re.match(r"translate\((\S+) (\S+)\)", element.get("transform", ""))
    if shift:
        dx, dy = dx + float(shift[1]), dy + float(shift[2])
    for x, y in re.findall(r"(-?[\d.]+)[ ,](-?[\d.]+)", element.get("d", "") + element.get("points", "")):
        yield dx + float(x), dy + float(y)
    if element.tag == f"{SVG}circle":
        x, y, r = (float(element.get(key)) for key in ("cx", "cy", "r"))
        yield from ((dx + x - r, dy + y - r), (dx + x + r, dy + y + r))
    if element.tag == f"{SVG}text":
        x, y = dx + float(element.get("x")), dy + float(element.get("y"))
        # A letter of 12 pixels is about 7 wide.
        width = 7 * len(element.text) * {"start": 1, "middle": 0.5, "end": -1}[element.get("text-anchor")]
        yield from ((x, y), (x + width, y), (x, y - 9))
    for child in element:
        yield from walk(child, dx, dy)


def assert_inside(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.get("viewBox").split())
    points = list(walk(root))
    assert points
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


NAMES = st.sampled_from(["b", "n", "c", "c1", "g", "h", "w", "t", "height", "batch", "channels", "g=32", "c=3", "h=1"])


@st.composite
def patterns(draw_from) -> str:
    names = draw_from(st.lists(NAMES, min_size=1, max_size=5, unique_by=lambda name: name.split("=")[0]))
    words = [f"[{name}]" if draw_from(st.booleans()) else name for name in names]
    if "[" not in "".join(words):
        words[-1] = f"[{words[-1]}]"
    if len(words) > 2 and draw_from(st.booleans()):
        words[1:3] = [f"({words[1]} {words[2]})"]
    if draw_from(st.booleans()):
        words.insert(draw_from(st.integers(0, len(words))), draw_from(st.sampled_from(["...", "[...]"])))
    return " ".join(words)


@given(patterns())
def test_any_pattern_can_be_drawn(pattern: str):
    picture = draw.svg(pattern)
    assert faces(picture, "region")
    assert_inside(picture)


def test_every_picture_stays_in_its_frame():
    for method in METHODS:
        assert_inside(draw.svg(method.name))
    assert_inside(draw.row([method.name for method in METHODS]))
    assert_inside(draw.row(["[a_very_long_name] and_one_more"]))


def test_a_row_carries_names_and_patterns():
    picture = draw.row(["GN", "weight_norm", "b t [c]"], lang="zh")
    for caption in ("组归一化", "b (g [c]) [...]", "权重归一化", "w = g * v / ‖v‖", "b t [c]"):
        assert caption in texts(picture)
    with pytest.raises(ArgumentError, match="at least one name or pattern, got none: draw 'batch_norm'"):
        draw.row([])


def test_only_a_file_of_its_own_brings_colours_and_size():
    inline, alone = draw.svg("GN"), draw.svg("GN", standalone=True)
    assert "<style>" not in inline
    assert "prefers-color-scheme" in alone
    assert 'width="' in alone.split(">")[0]
    assert ' width="' not in inline.split(">")[0]


def test_a_title_is_text():
    root = ElementTree.fromstring(draw.svg("GN", title='<b> & "quotes"'))
    assert root.get("aria-label") == root.find(f"{SVG}title").text == '<b> & "quotes"'


def test_names_of_several_words_and_patterns_are_distinguished():
    assert draw.svg("group normalization") == draw.svg("GN")
    assert "Batch norm" not in draw.svg("[b] n")
    with pytest.raises(PatternError, match="put the axes that are reduced in brackets"):
        draw.svg("b c h")
    with pytest.raises(PatternError, match=r"is never closed\n    b \[c\n      \^"):
        draw.svg("b [c")
    with pytest.raises(ArgumentError, match="did you mean 'group_norm'"):
        draw.svg("group_nrom")
