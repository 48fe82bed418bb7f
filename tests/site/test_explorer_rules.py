"""The explorer's patterns and plans in JavaScript are those of `normkit.pattern` and `normkit.plan`."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
from javascript import answers

from normkit.catalog import METHODS
from normkit.errors import NormkitError
from normkit.pattern import parse
from normkit.plan import Prepare, plan

ANSWER = """question => {
  try {
    const region = nk.parse(question.pattern).bind(question.sizes);
    const out = { region: region.text, axes: region.axes.map(a => [a.name, a.reduced, a.size]),
                  features: region.hasFeatures };
    if (question.shape === null) return out;
    const { shape, strides, varying, slabs } = question;
    const levels = region.levels(shape, varying);
    const made = nk.plan(region, shape, strides, varying, slabs);
    const elements = levels.reduce(
      (all, level) => all.flatMap(index => [...Array(level.size).keys()].map(i => [...index, i])), [[]]);
    return { ...out, levels: levels.map(l => [l.name, l.dim, l.size, l.reduced, l.feature]),
             plan: [made.view, made.period, made.inner, made.slabs, made.columns, made.prepare, made.sizes,
                    made.memory, made.kept, made.features, made.rows],
             text: nk.planText(made), cells: elements.map(index => nk.cellOf(levels, index)) };
  } catch (error) {
    if (!(error instanceof nk.NormkitError)) throw error;
    return { error: error.kind, text: error.message };
  }
}"""
"""What JavaScript says of a case; `expected` says the same in Python."""

Case = dict[str, Any]


def case(
    pattern: str, shape: tuple[int, ...] | None = None, strides: tuple[int, ...] | None = None, **more: Any
) -> Case:
    dense = dense_strides(shape, range(len(shape))) if shape is not None and strides is None else strides
    return {"pattern": pattern, "sizes": {}, "shape": shape, "strides": dense, "varying": None, "slabs": True} | more


def dense_strides(shape: tuple[int, ...], order: Any) -> tuple[int, ...]:
    """Dense strides with the dimensions of `order` from outermost to innermost."""
    strides, inside = [0] * len(shape), 1
    for dim in reversed(list(order)):
        strides[dim] = inside
        inside *= shape[dim]
    return tuple(strides)


def expected(asked: Case) -> dict[str, Any]:
    try:
        region = parse(asked["pattern"]).bind(**asked["sizes"])
        out: dict[str, Any] = {"region": region.text, "features": region.has_features}
        out["axes"] = [[axis.name, axis.reduced, axis.size] for axis in region.axes]
        if asked["shape"] is None:
            return out
        levels = region.levels(asked["shape"], asked["varying"])
        made = plan(region, asked["shape"], asked["strides"], asked["varying"], slabs_in_regions=asked["slabs"])
    except NormkitError as error:
        return {"error": type(error).__name__, "text": str(error)}
    out["levels"] = [[lv.name, lv.dim, lv.size, lv.reduced, lv.feature] for lv in levels]
    rows = None if made.rows is None else list(made.rows)
    lists = [list(each) for each in (made.sizes, made.memory, made.kept, made.features)]
    out["plan"] = [list(made.view), made.period, made.inner, made.slabs, made.columns, str(made.prepare), *lists, rows]
    out["text"] = str(made)
    # By definition: elements with the same kept indices are in one cell, and cells are numbered as they come.
    number: dict[tuple[int, ...], int] = {}
    cells = []
    for index in itertools.product(*(range(level.size) for level in levels)):
        kept = tuple(i for i, level in zip(index, levels, strict=True) if not level.reduced)
        cells.append(number.setdefault(kept, len(number)))
    out["cells"] = cells
    return out


def agree(cases: list[Case]) -> list[dict[str, Any]]:
    wanted = [expected(asked) for asked in cases]
    for asked, found, right in zip(cases, answers(ANSWER, cases), wanted, strict=True):
        assert found == right, asked
    return wanted


SHAPES = [(4, 6), (4, 6, 5), (2, 6, 3, 4), (1, 6, 1, 4), (2, 6, 2, 3, 2), (3, 1, 1, 1)]


def of_the_catalog() -> Iterator[Case]:
    for pattern in sorted({pattern for method in METHODS for pattern in method.patterns}):
        for shape, groups in itertools.product(SHAPES, (1, 2, 3, 4)):
            sizes = {"g": groups} if "(g " in pattern else {}
            if not sizes and groups > 1:
                continue
            dims = range(len(shape))
            for order in (dims, [0, *dims[2:], 1], reversed(dims)):
                yield case(pattern, shape, dense_strides(shape, order), sizes=sizes)


def test_the_catalog_has_the_same_regions_and_plans():
    cases = list(of_the_catalog())
    assert len(cases) > 200
    found = agree(cases)
    assert sum("error" in each for each in found) > 10
    assert {each["plan"][4] for each in found if "plan" in each} == {True, False}


WRONG = [
    "", " ", "b", "b c", "b c ...", "b [c", "b (c", "b c]", "b c)", "b (g [c) [...]", "b [(g c] h)", "b [ ] c",
    "b ( ) [c]", "b [[c]]", "b ((g c) [d])", "([b) c]", "b c [c]", "... [...]", "b (g ... [c])", "([...])",
    "b c% [d]", "b c=x [h]", "b c=0 [h]", "b c= [h]", "b c=-1 [h]", "b [c=1.5]", "3 [c]", "b [3c]", "b [c²]",
    "b 'c [d]", "b \"c' [d]", "b \\ [d]", "b [c]=3", "=3 [c]", "b = [c]", "b,c,[h]", "b [..]", "b [....]",
    "b [c.h]", "b \t[c=\u0663x]", "b \u00a0[c", "é [é]", "b [通 通]", "b [🙂]", "🙂 [c", "b\n[c", "b\u2028[c",
    "b \x1c] c", "b \ufeff [c]", "b \u200b[c]", "b (g [c=٣٤q]) [...]",
]  # fmt: skip
RIGHT = [
    "[b]", "[...]", "[b c]", "b[c]", "  b   [ c ]  ", "b\t[c]\n", "b [c] ... ", "[b] c [...]", "b [c] h [w]",
    "[b] [c]", "[(b t) c]", "b (g=4 [c]) [h w]", "b ([g] c) [...]", "b (c [g=2]) [...]", "([a b])", "[a (b c)] d",
    "([a] b [c])", "b [c=٣]", "b [c=３]", "b [c=𝟛]", "_ [_1]", "b [c_1 c2]", "b 通 [道]", "é [ü]", "b [c0=16]",
    "... [c1 c2]", "[b=2 c=3]", "b [cª]", "b (c=2 d=3 [e=4])", "b\u3000[c]", "b\x1c[c]", "b [c=007]",
]  # fmt: skip


def test_wrong_patterns_have_the_same_errors():
    found = agree([case(pattern) for pattern in WRONG])
    assert [each["text"] for each in found if "error" not in each] == []
    assert {each["text"].count("^") for each in found} == {1}


def test_right_patterns_have_the_same_axes():
    found = agree([case(pattern) for pattern in RIGHT])
    assert [each["text"] for each in found if "error" in each] == []


def test_sizes_that_do_not_fit_have_the_same_errors():
    found = agree(
        [
            case("b (g [c]) [...]", (2, 6, 3)),
            case("b (g [c]) [...]", (2, 6, 3), sizes={"g": 4}),
            case("b (g [c]) [...]", (2, 6, 3), sizes={"g": 0}),
            case("b (g [c]) [...]", sizes={"groups": 2}),
            case("b (g [c]) [...]", sizes={"...": 2}),
            case("b (g=2 [c=4]) [...]", (2, 6, 3)),
            case("b (g h [c]) [...]", (2, 6, 3)),
            case("b [c=5]", (2, 6)),
            case("b c [h w]", (2, 6, 3)),
            case("b c [h w]", (2,)),
            case("b c [h] ...", (2,)),
            case("b [c]", (2, 3, 4)),
            case("[b]", ()),
        ]
    )
    assert {each["error"] for each in found} == {"ArgumentError", "ShapeError"}
    assert len({each["text"] for each in found}) == len(found)


MORE = [
    case("... [c]", (4, 6), (8, 1)),  # rows with gaps
    case("... [c]", (2, 3, 6), (100, 8, 1)),  # two sequences of rows
    case("... [c]", (2, 2, 3, 6), (200, 100, 8, 1)),
    case("... [c]", (4, 6), (0, 1)),  # expanded
    case("... [c]", (4, 6), (4, 1)),  # overlapping
    case("b c [...]", (2, 3, 4, 4), (96, 32, 8, 2)),  # every second element
    case("b [c] h [w]", (2, 3, 4, 5)),  # five levels
    case("[b] c [h] w", (2, 3, 4, 5)),
    case("b [c1] h [c2]", (2, 6, 4, 3)),
    case("b c1 [h] c2", (2, 3, 4, 5)),  # slabs
    case("b c1 [h] c2", (2, 3, 4, 5), slabs=False),
    case("[b] c1 [h] c2", (2, 3, 4, 5)),
    case("[c1 h] c2", (4, 3, 5)),
    case("[c1 h] c2", (4, 3, 5), slabs=False),
    case("b [c ...]", (2, 3, 4, 4), varying=[False, True, True, True]),
    case("[b] c [...]", (2, 3, 4, 4), varying=[True, True, False, False]),
    case("b [h c]", (2, 600, 2)),  # one long row that repeats its weights
    case("b [h c]", (2, 2, 600)),
    case("[b] c [...]", (2, 3, 8, 8)),  # rows of 64: along rows
    case("[b] c [...]", (2, 3, 7, 9)),  # of 63: down columns
    case("[b] c [...]", (3, 2, 8), varying=[True, True, False]),  # weights change in rows of 8: a copy
    case("[b] c [...]", (3, 2, 9), varying=[True, True, False]),  # of 9: none
    case("[h c]", (2, 512)),  # a long row that repeats 512 weights: down columns
    case("[h c]", (2, 513)),  # 513 weights: along rows
    case("b (g=2 [c]) [...]", (2, 4, 3, 3), dense_strides((2, 4, 3, 3), [0, 2, 3, 1])),
    case("b (g=2 [c]) [...]", (2, 128, 5), dense_strides((2, 128, 5), [0, 2, 1])),
    case("[...]", (2, 3)),
    case("b [...]", (1, 1)),
    case("[b]", (5,)),
    case("[b=1] c", (1, 1)),
]


def test_every_kind_of_plan_is_the_same():
    found = agree(MORE)
    assert {each["plan"][5] for each in found} == set(map(str, Prepare))
    assert {each["plan"][3] > 1 for each in found} == {True, False}
    assert sum(each["plan"][10] is not None for each in found) >= 2


def drawn(random: random.Random) -> Case:
    """A pattern that is often right, sometimes with one letter changed, on a tensor of any strides."""
    names = random.sample(["b", "c", "h", "w", "t", "c2", "g", "x1"], random.randint(1, 4))
    words, open_ = [], False
    for name in names:
        text = name
        if random.random() < 0.2:
            outer = f"k{name}={random.choice([1, 2, 3])}"
            text = random.choice([f"({outer} [{name}])", f"([{outer}] {name})"]) if not open_ else f"({outer} {name})"
        elif not open_ and random.random() < 0.5:
            text, open_ = f"[{text}", True
        if open_ and random.random() < 0.6:
            text, open_ = f"{text}]", False
        words.append(text)
    if random.random() < 0.5:
        words.insert(random.randint(0, len(words)), "..." if "[" in "".join(words) else "[...]")
    pattern = " ".join(words) + ("]" if open_ else "")
    if random.random() < 0.25 and pattern:
        at = random.randrange(len(pattern))
        pattern = (
            pattern[:at] + random.choice(["", "[", "]", "(", ")", " ", "=", "c", "...", "é", "'"]) + pattern[at + 1 :]
        )
    rank = len(names) + (random.randint(0, 2) if "..." in pattern else 0) - (random.random() < 0.05)
    shape = tuple(random.choice([1, 2, 3, 6, 12]) for _ in range(rank))
    if math.prod(shape) > 600:
        shape = tuple(min(size, 3) for size in shape)
    order = list(range(rank))
    random.shuffle(order)
    strides = list(dense_strides(shape, order))
    if strides and random.random() < 0.3:
        at = random.randrange(rank)
        strides[at] *= random.choice([0, 2, 3])
    varying = [random.random() < 0.5 for _ in shape] if random.random() < 0.3 else None
    return case(pattern, shape, tuple(strides), varying=varying, slabs=random.random() < 0.7)


@pytest.mark.parametrize("seed", range(3))
def test_drawn_patterns_have_the_same_regions_plans_and_errors(seed: int):
    generator = random.Random(seed)
    found = agree([drawn(generator) for _ in range(400)])
    wrong = sum("error" in each for each in found)
    assert 60 < wrong < 300, "both kinds of patterns are drawn"
    assert len({each["plan"][5] for each in found if "plan" in each}) >= 3
