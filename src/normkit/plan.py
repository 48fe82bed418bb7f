"""How one call is carried out on one tensor: a region and the tensor's memory become a four-level view.

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
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from normkit.pattern import Level, Region

SHORT_ROW = 64
"""Rows shorter than this, when there are many for one statistic, are cheaper walked down their columns."""


WIDEST_CELL = 512
"""Columns of one statistic that a kernel's tile holds at most."""


class Prepare(StrEnum):
    """What happens to the tensor before the kernel runs."""

    AS_IS = "the tensor as it is"
    DENSE = "a dense copy first: the tensor has gaps or overlaps in memory"
    REGROUP = "a copy with kept before reduced axes first: the region needs more than four levels"


@dataclass(frozen=True)
class Plan:
    """One call, ready for a kernel.

    Attributes:
        view: sizes (K0, R0, K1, R1) of the memory, outermost first.
        period: number of weights, and
        inner: elements that share one; the weight of the element at ``offset`` is ``offset // inner % period``.
        columns: walk down columns of K1 * R1 elements instead of along rows of R1.
        prepare: what is done to the tensor before.
        sizes: the axes' sizes in logical order, dimensions split as the pattern says.
        memory: the axes (indices into `sizes`) in the order of memory, outermost first.
        kept, features: the axes that statistics and weights vary over, in the order of memory.
    """

    view: tuple[int, int, int, int]
    period: int
    inner: int
    columns: bool
    prepare: Prepare
    sizes: tuple[int, ...]
    memory: tuple[int, ...]
    kept: tuple[int, ...]
    features: tuple[int, ...]

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """What a kernel is called with."""
        return (*self.view, self.period, self.inner, self.columns)

    @cached_property
    def direct(self) -> bool:
        """Whether tensor, weights and statistics go to the kernel and come back as they are."""
        return self.prepare is Prepare.AS_IS and self.kept_in_order and self.features_in_order

    @cached_property
    def kept_in_order(self) -> bool:
        """Whether statistics lie in memory in their logical order."""
        return list(self.kept) == sorted(self.kept)

    @cached_property
    def features_in_order(self) -> bool:
        """Whether weights are met in memory in their logical order."""
        return list(self.features) == sorted(self.features)

    @property
    def count(self) -> int:
        """Elements that share one statistic."""
        return self.view[1] * self.view[3]

    @property
    def cells(self) -> int:
        """Number of statistics."""
        return self.view[0] * self.view[2]

    def __str__(self) -> str:
        walk = "walked down columns" if self.columns else "walked along rows"
        index = "offset" if self.inner == 1 else f"offset // {self.inner}"
        view = " x ".join(map(str, self.view))
        return f"K R K R = {view}, {walk}, weight index = {index} % {self.period}; {self.prepare}"


def plan(region: Region, shape: Sequence[int], strides: Sequence[int]) -> Plan:
    """Plan one call.

    Args:
        region: what shares a mean.
        shape: of the tensor; no dimension may be empty.
        strides: of the tensor, in elements.

    Returns:
        The plan.

    Raises:
        ShapeError: the shape does not fit the region.
    """
    levels = region.levels(shape)
    steps = _level_strides(levels, strides)
    order = sorted((i for i, level in enumerate(levels) if level.size > 1), key=lambda i: -steps[i])
    if not _is_dense(order, levels, steps):
        return _finish(levels, order, Prepare.DENSE) or _regrouped(levels, order, Prepare.DENSE)
    return _finish(levels, order, Prepare.AS_IS) or _regrouped(levels, order, Prepare.REGROUP)


def _level_strides(levels: Sequence[Level], strides: Sequence[int]) -> list[int]:
    """The stride of each level: parts of one dimension lie one inside the other."""
    out: list[int] = []
    for i, level in enumerate(levels):
        inside = math.prod(later.size for later in levels[i + 1 :] if later.dim == level.dim)
        out.append(strides[level.dim] * inside)
    return out


def _is_dense(order: Sequence[int], levels: Sequence[Level], steps: Sequence[int]) -> bool:
    expected = 1
    for i in reversed(order):
        if steps[i] != expected:
            return False
        expected *= levels[i].size
    return True


def _regrouped(levels: Sequence[Level], order: Sequence[int], prepare: Prepare) -> Plan:
    """Kept before reduced, features side by side where the two meet: always one row for each statistic."""
    moved = sorted(order, key=lambda i: (levels[i].reduced, levels[i].feature != levels[i].reduced))
    plan = _finish(levels, moved, prepare)
    assert plan is not None
    return plan


def _finish(levels: Sequence[Level], order: Sequence[int], prepare: Prepare) -> Plan | None:
    """The plan for axes in this order of memory, or None where four levels or one period do not describe it."""
    runs: list[tuple[bool, int]] = []
    for i in order:
        if runs and runs[-1][0] == levels[i].reduced:
            runs[-1] = (levels[i].reduced, runs[-1][1] * levels[i].size)
        else:
            runs.append((levels[i].reduced, levels[i].size))
    slots = {"K0": 1, "R0": 1, "K1": 1, "R1": 1}
    names = ["K0", "R0", "K1", "R1"]
    if runs and not runs[-1][0]:
        names.pop()
    if len(runs) > len(names):
        return None
    for name, (_, size) in zip(reversed(names), reversed(runs), strict=False):
        slots[name] = size
    if slots["R0"] == 1:
        slots["K0"], slots["K1"] = slots["K0"] * slots["K1"], 1
    view = (slots["K0"], slots["R0"], slots["K1"], slots["R1"])

    places = [place for place, i in enumerate(order) if levels[i].feature]
    if places and places[-1] - places[0] != len(places) - 1:
        return None
    period = math.prod(levels[i].size for i in order if levels[i].feature)
    inner = math.prod(levels[i].size for i in order[places[-1] + 1 :]) if places else math.prod(view)

    if view[1] == view[2] == 1 and period * inner < view[3] and period * inner <= WIDEST_CELL:
        # Weights come round again within a row: walked down columns, each column keeps its own.
        view = (view[0], view[3] // (period * inner), 1, period * inner)
        columns = True
    else:
        columns = view[1] > 1 and view[3] < SHORT_ROW
    width = view[2] * view[3]
    if columns and width % (period * inner) and inner % width:
        return None
    return Plan(
        view=view,
        period=period,
        inner=inner,
        columns=columns,
        prepare=prepare,
        sizes=tuple(level.size for level in levels),
        memory=tuple(order),
        kept=tuple(i for i in order if not levels[i].reduced),
        features=tuple(i for i in order if levels[i].feature),
    )
