"""From a region and a tensor's memory to a plan: the four-level view that kernels work on.

Drop the dimensions of size 1, order the rest by stride, merge neighbours of the same role. What is left
is read as **K R K R**, outermost first: kept, reduced, kept, reduced, some of size 1. A kernel needs those
four sizes, the affine period, and nothing else about the tensor's shape. Pure arithmetic, no torch.

>>> from normkit.pattern import parse
>>> print(plan(parse("[b] c [...]"), (8, 16, 32, 32), (16384, 1, 512, 16)))   # channels_last
K R K R = 1 x 8192 x 16 x 1, walked down columns, weight index = offset % 16; the tensor as it is
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from normkit.pattern import Level, Region

SHORT_ROW = 64
"""Shorter rows, if several belong to one statistic, are walked down columns.

Measured with batch norm of 2 million contiguous float32 elements on one core of an AMD EPYC: columns take .11 of the
time of rows where these have 32 elements, .14 at 48, .48 at 64, .66 at 128 and .90 at 256. So 64 is too low for batch
norm; other methods have not been measured between 64 and 256.
"""

SHORTEST_ROW = 8
"""Rows that columns cannot take, because weights change between the rows of a column, are copied if they are shorter or
of this length. A guess."""

WIDEST_CELL = 512
"""Most columns of one statistic. A cell must fit in the 1024 columns that a CPU kernel takes at once; half of them is a
guess."""


View = tuple[int, int, int, int]
"""Sizes of K0, R0, K1 and R1."""


class Prepare(StrEnum):
    """What happens to the tensor before the kernel runs."""

    AS_IS = "the tensor as it is"
    STRIDED = "the tensor as it is, its rows apart"
    DENSE = "a dense copy first: the tensor has gaps or overlaps in memory"
    REGROUP = "a copy with kept before reduced axes first: the region needs more than four levels"


class Rows(NamedTuple):
    """Where the rows of a strided tensor begin: row r at element ``r // group * outer + r % group * pitch``."""

    group: int
    pitch: int
    outer: int


DENSE = Rows(0, 0, 0)


@dataclass(frozen=True)
class Plan:
    """One call, ready for a kernel.

    Attributes:
        view: sizes of K0, R0, K1 and R1, outermost first.
        period: number of weights, and
        inner: elements that share one; the weight of the element at ``offset`` is ``offset // inner % period``.
        slabs: equal parts of the memory, each with its own `period` weights. They are parts of K0, or of R0 where K0
            is 1: weights then change within a region.
        columns: walk down columns of K1 * R1 elements instead of along rows of R1.
        prepare: what happens to the tensor before the kernel runs.
        sizes: the axes' sizes in logical order, dimensions split as the pattern says.
        memory: the axes (indices into `sizes`) in the order of memory, outermost first.
        kept: the axes that statistics vary over, in the order of memory.
        features: the axes that weights vary over, in the order of memory.
        rows: where the rows of a strided tensor begin; None for a dense one.
    """

    view: View
    period: int
    inner: int
    slabs: int
    columns: bool
    prepare: Prepare
    sizes: tuple[int, ...]
    memory: tuple[int, ...]
    kept: tuple[int, ...]
    features: tuple[int, ...]
    rows: Rows | None = None

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The numbers that a kernel is called with."""
        return (*self.view, self.period, self.inner, self.columns, self.slabs, *(self.rows or DENSE))

    @cached_property
    def direct(self) -> bool:
        """Whether tensor, weights and statistics need neither a copy nor another order, before the kernel and after."""
        as_it_is = self.prepare in (Prepare.AS_IS, Prepare.STRIDED)
        return as_it_is and self.kept_in_order and self.features_in_order

    @cached_property
    def kept_in_order(self) -> bool:
        """Whether statistics lie in memory in their logical order."""
        return list(self.kept) == sorted(self.kept)

    @cached_property
    def features_in_order(self) -> bool:
        """Whether weights follow one another in memory in their logical order."""
        return list(self.features) == sorted(self.features)

    @property
    def has_slabs_in_regions(self) -> bool:
        """Whether weights change within a region."""
        return self.slabs > 1 and self.view[0] == 1

    @property
    def count(self) -> int:
        """Elements that share one statistic."""
        return self.view[1] * self.view[3]

    @property
    def cells(self) -> int:
        """Number of statistics (cells)."""
        return self.view[0] * self.view[2]

    def __str__(self) -> str:
        walk = "walked down columns" if self.columns else "walked along rows"
        index = "offset" if self.inner == 1 else f"offset // {self.inner}"
        view = " x ".join(map(str, self.view))
        slabs = "" if self.slabs == 1 else f" in each of {self.slabs} slabs"
        return f"K R K R = {view}, {walk}, weight index = {index} % {self.period}{slabs}; {self.prepare}"


def plan(
    region: Region,
    shape: Sequence[int],
    strides: Sequence[int],
    varying: Sequence[bool] | None = None,
    *,
    slabs_in_regions: bool = True,
) -> Plan:
    """Plan one call.

    Args:
        region: which elements share a mean.
        shape: of the tensor; no dimension may be empty.
        strides: of the tensor, in elements.
        varying: whether weight and bias vary over each dimension; None if they vary over the features of the region.
        slabs_in_regions: whether the kernels can change weights within a region that has its values in columns.

    Returns:
        The plan.

    Raises:
        ShapeError: the shape does not fit the region.
    """
    levels = region.levels(shape, varying)
    steps = _level_strides(levels, strides)
    order = sorted((i for i, level in enumerate(levels) if level.size > 1), key=lambda i: -steps[i])

    def finished(prepare: Prepare) -> Plan | None:
        made = _finish(levels, order, prepare)
        return made if made is None or slabs_in_regions or not made.has_slabs_in_regions else None

    if _is_dense(order, levels, steps):
        return finished(Prepare.AS_IS) or _regrouped(levels, order, Prepare.REGROUP)
    rows = _strided_rows(order, levels, steps)
    strided = None if rows is None else _finish(levels, order, Prepare.STRIDED)
    if strided is not None and not strided.columns and strided.view[1] == strided.view[2] == 1:
        return replace(strided, rows=rows)
    return finished(Prepare.DENSE) or _regrouped(levels, order, Prepare.DENSE)


def _level_strides(levels: Sequence[Level], strides: Sequence[int]) -> list[int]:
    """The stride of each level. A dimension that is split in several has its last part innermost."""
    out: list[int] = []
    for i, level in enumerate(levels):
        inside = math.prod(later.size for later in levels[i + 1 :] if later.dim == level.dim)
        out.append(strides[level.dim] * inside)
    return out


def _is_dense(order: Sequence[int], levels: Sequence[Level], steps: Sequence[int]) -> bool:
    """Whether the elements fill their memory without gaps and overlaps."""
    expected = 1
    for i in reversed(order):
        if steps[i] != expected:
            return False
        expected *= levels[i].size
    return True


def _strided_rows(order: Sequence[int], levels: Sequence[Level], steps: Sequence[int]) -> Rows | None:
    """Where rows begin, if each is dense and they are one or two evenly spaced sequences without overlap."""
    expected, head = 1, list(order)
    while head and levels[head[-1]].reduced:
        if steps[head[-1]] != expected:
            return None
        expected *= levels[head.pop()].size
    runs: list[tuple[int, int]] = []  # number and distance, innermost first
    for i in reversed(head):
        number, step = runs[-1] if runs else (1, expected)
        if steps[i] < number * step:
            return None
        if runs and steps[i] == number * step:
            runs[-1] = (number * levels[i].size, step)
        else:
            runs.append((levels[i].size, steps[i]))
    if not runs or len(runs) > 2 or expected == 1:
        return None
    (group, pitch), (_, outer) = runs[0], runs[1] if len(runs) == 2 else (1, 0)
    return Rows(group, pitch, outer)


def _regrouped(levels: Sequence[Level], order: Sequence[int], prepare: Prepare) -> Plan:
    """A plan that always exists: kept before reduced axes, features side by side where the two meet.

    Each statistic then has one row.
    """
    regrouped = sorted(order, key=lambda i: (levels[i].reduced, levels[i].feature != levels[i].reduced))
    plan = _finish(levels, regrouped, prepare)
    assert plan is not None
    return plan


def _finish(levels: Sequence[Level], order: Sequence[int], prepare: Prepare) -> Plan | None:
    """The plan for axes in this order of memory, or None where four levels or one period do not describe it."""
    view = _view(levels, order)
    weights = _weights(levels, order)
    if view is None or weights is None:
        return None
    slabs, period, inner = weights
    view, columns = _walk(view, period, inner)
    width = view[2] * view[3]
    if slabs > 1 and view[0] == 1 and not (columns and view[1] % slabs == 0 and width % (period * inner) == 0):
        return None
    if columns and width % (period * inner) and inner % width:
        if view[3] <= SHORTEST_ROW:
            return None
        columns = False
    return Plan(
        view=view,
        period=period,
        inner=inner,
        slabs=slabs,
        columns=columns,
        prepare=prepare,
        sizes=tuple(level.size for level in levels),
        memory=tuple(order),
        kept=tuple(i for i in order if not levels[i].reduced),
        features=tuple(i for i in order if levels[i].feature),
    )


def _view(levels: Sequence[Level], order: Sequence[int]) -> View | None:
    """Neighbours of the same role become one level of the view; None where more than four are left."""
    runs: list[tuple[bool, int]] = []
    for i in order:
        if runs and runs[-1][0] == levels[i].reduced:
            runs[-1] = (levels[i].reduced, runs[-1][1] * levels[i].size)
        else:
            runs.append((levels[i].reduced, levels[i].size))
    # Roles alternate, so the innermost run decides where the others go: R1 if it is reduced, else K1.
    names = ["K0", "R0", "K1", "R1"] if not runs or runs[-1][0] else ["K0", "R0", "K1"]
    if len(runs) > len(names):
        return None
    sizes = dict.fromkeys(("K0", "R0", "K1", "R1"), 1)
    for name, (_, size) in zip(reversed(names), reversed(runs), strict=False):
        sizes[name] = size
    if sizes["R0"] == 1:
        return sizes["K0"] * sizes["K1"], 1, 1, sizes["R1"]
    return sizes["K0"], sizes["R0"], sizes["K1"], sizes["R1"]


def _weights(levels: Sequence[Level], order: Sequence[int]) -> tuple[int, int, int] | None:
    """(slabs, period, inner) of the weights; None where other axes lie between those that they vary over.

    Axes that come first in memory, all of them kept or all reduced, may be apart from the others: they are the slabs.
    """
    places = [place for place, i in enumerate(order) if levels[i].feature]
    first = 0
    if places and places[-1] - places[0] != len(places) - 1:
        outer = levels[order[0]]
        while first < len(order) and levels[order[first]].feature and levels[order[first]].reduced == outer.reduced:
            first += 1
        places = places[first:]
        if places[-1] - places[0] != len(places) - 1:
            return None
    slabs = math.prod(levels[i].size for i in order[:first])
    period = math.prod(levels[order[place]].size for place in places)
    inside = order[places[-1] + 1 :] if places else order
    return slabs, period, math.prod(levels[i].size for i in inside)


def _walk(view: View, period: int, inner: int) -> tuple[View, bool]:
    """Whether a kernel walks down columns. It does for short rows, and where weights repeat within one long row.

    Such a row is read as several short ones, one for each repetition, so that a column keeps its weight.
    """
    k0, r0, k1, r1 = view
    if r0 == k1 == 1 and period * inner < r1 and period * inner <= WIDEST_CELL:
        return (k0, r1 // (period * inner), 1, period * inner), True
    return view, r0 > 1 and r1 < SHORT_ROW
