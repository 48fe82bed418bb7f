"""Patterns as text: what they mean, and the errors for wrong ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normkit.errors import ArgumentError, NormkitError, PatternError, ShapeError
from normkit.pattern import Axis, Region, parse

GOOD = [
    "[b] c [...]",
    "b [c ...]",
    "... [c]",
    "b [c] ...",
    "b c [...]",
    "b (g [c]) [...]",
    "b (g=4 [c]) [h w]",
    "[(b t) c]",
]


@pytest.mark.parametrize("text", GOOD)
def test_text_and_region_say_the_same(text):
    assert parse(str(parse(text))) == parse(text)


def test_axes_know_whether_they_are_reduced():
    assert parse("b (g=4 [c]) [...]").axes == (
        Axis("b", False),
        Axis("g", False, 4),
        Axis("c", True),
        Axis("...", True),
    )


@pytest.mark.parametrize(
    ("text", "caret", "words"),
    [
        ("b (g [c) [...]", 7, "')' cannot close the '['"),
        ("b c ...", 0, "no axis is in brackets"),
        ("b [c", 2, "'[' is never closed"),
        ("b (c", 2, "'(' is never closed"),
        ("b c]", 3, "']' closes nothing"),
        ("b (g ... [c])", 5, "cannot be inside '( )'"),
        ("b c [c]", 5, "axis 'c' is named twice"),
        ("b ... [...]", 7, "axis '...' is named twice"),
        ("b c=x [h]", 2, "the size of axis 'c'"),
        ("b c=0 [h]", 2, "the size of axis 'c'"),
        ("", 0, "names at least one axis"),
        ("b [ ] c", 2, "'[]' is empty"),
        ("b ((g c) [d])", 3, "'(' cannot be inside another '('"),
        ("b c% [d]", 3, "'%' is not an axis"),
    ],
)
def test_a_wrong_pattern_is_shown_with_a_caret(text, caret, words):
    with pytest.raises(PatternError) as caught:
        parse(text)
    rule, shown, mark, remedy = str(caught.value).splitlines()
    assert words in rule
    assert shown == "    " + text
    assert mark == "    " + " " * caret + "^"
    assert remedy


def test_a_pattern_must_be_text():
    with pytest.raises(PatternError, match="a pattern is text, got int"):
        parse(3)


def test_levels_split_dimensions_and_repeat_the_ellipsis():
    levels = parse("b (g [c]) [...]").bind(g=2).levels((3, 8, 5, 7))
    assert [(lv.name, lv.dim, lv.size, lv.reduced, lv.feature) for lv in levels] == [
        ("b", 0, 3, False, False),
        ("g", 1, 2, False, True),
        ("c", 1, 4, True, True),
        ("...", 2, 5, True, False),
        ("...", 3, 7, True, False),
    ]


@pytest.mark.parametrize(
    ("text", "shape", "words"),
    [
        ("b c [...]", (3,), "needs at least 2 dimensions, got 1"),
        ("b [c]", (3, 4, 5), "needs 2 dimensions, got 3"),
        ("b (g=3 [c]) [...]", (2, 8, 4), "must be divisible by g=3, got 8"),
        ("b (g=2 [c=3])", (2, 8), "must equal g=2 * c=3, got 8"),
        ("b c=4 [h]", (2, 8, 3), "must equal c=4, got 8"),
    ],
)
def test_a_shape_that_does_not_fit_is_an_error(text, shape, words):
    with pytest.raises(ShapeError) as caught:
        parse(text).levels(shape)
    assert words in str(caught.value)


def test_a_split_needs_all_sizes_but_one():
    with pytest.raises(ArgumentError, match="g and c have none: write 'g=8', or give num_groups"):
        parse("b (g [c])").levels((2, 8))


def test_bind_takes_only_axes_of_the_pattern():
    with pytest.raises(ArgumentError, match="has no axis 'g'"):
        parse("b c [...]").bind(g=2)
    with pytest.raises(ArgumentError, match="at least 1, got 0"):
        parse("b (g [c])").bind(g=0)


@given(st.text(alphabet="bcgh[]().= 0123%", max_size=16))
def test_any_text_is_a_region_or_a_pattern_error(text):
    region = None
    try:
        region = parse(text)
    except NormkitError as error:
        message = str(error)
    if region is None:
        assert "^" in message
    else:
        assert isinstance(region, Region)
        assert parse(str(region)) == region
