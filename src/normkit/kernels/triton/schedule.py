"""How a plan is carried out on a GPU: which elements a program takes, how often it reads them, who adds up what.

A plan's K R K R view becomes axes with one stride each. A program takes one index of ``k0`` and a tile of the others:
some cells along ``k1``, and some elements of each along the reduced axes ``r0`` and ``r1``. Where cells lie between
one another and r1 is short, the elements of r1 become the *columns* of a cell, so that threads read along memory.
Pure arithmetic, no Triton.

A schedule has several *passes*, each with a tile and a number of parts of its own, for a kernel that reduces and one
that only normalizes are fastest with different ones. Tiles and parts follow from the region and the size of an element,
never from the number of regions: so in contiguous and channels_last tensors the bits of a sample's output do not depend
on the batch that it is in.

>>> print(schedule((32, 64, 1, 12544), 64, 12544))      # GroupNorm(1) of [32, 64, 112, 112]
region 64 x 12544, cut into 32 x 1, tile 1 x 1 x 2048; normalized in tiles of 1 x 2 x 2048
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from normkit.kernels.triton.arguments import Along, MaskIndex, Walk, WeightIndex
from normkit.kernels.triton.passes import CHUNK, NO_GAPS, WORDS_GATED, Axis, Gaps, Pass, Passes


@dataclass(frozen=True)
class Schedule:
    """One plan, ready for launches.

    Attributes:
        k0, k1: numbers of cells, outer and inner.
        r0, r1: sizes of a region; r1 holds the columns, too.
        index: how an element's weight is found.
        slabs: how many sets of weights there are that follow one another, each for as many elements.
        sets: how many sets of weights the blocks of the backward pass keep apart; 1 if they do not.
        features: the axis along which gradients of weights are added up; OFFSET if `feature_sums` does that.
        forward, backward: passes over whole regions; None where a region is cut into parts.
        gated: as `backward`, for calls with a gate or a skip.
        parts, sums: passes that reduce parts, forward and backward.
        apply: the pass that normalizes when moments are in memory.
        view, gaps: of the plan.
        itemsize, chunk: what the schedule was made with.
    """

    k0: int
    k1: int
    r0: int
    r1: int
    index: WeightIndex
    slabs: int
    sets: int
    features: Along
    forward: Pass | None
    backward: Pass | None
    gated: Pass | None
    parts: Pass
    sums: Pass
    apply: Pass
    view: tuple[int, int, int, int]
    gaps: Gaps
    itemsize: int
    chunk: int

    @cached_property
    def count(self) -> int:
        """Elements of a region."""
        return self.r0 * self.r1

    @cached_property
    def alike(self) -> bool:
        """Whether all cells have the same weights."""
        return self.index.cell_mod == 1

    @cached_property
    def cells(self) -> int:
        """Regions."""
        return self.k0 * self.k1

    @cached_property
    def numel(self) -> int:
        return self.cells * self.count

    @cached_property
    def weights(self) -> int:
        """Weights of all slabs."""
        return self.slabs * self.index.period

    @cached_property
    def dense(self) -> Schedule:
        """The same for a tensor whose rows have no gaps between them."""
        if not self.gaps.group:
            return self
        return schedule(self.view, self.index.period, self.index.inner, self.itemsize, self.slabs, chunk=self.chunk)

    def __str__(self) -> str:
        region = f"region {self.r0} x {self.r1}"
        if self.forward is not None:
            walk = "read once" if self.forward.walk is Walk.WHOLE else "walked twice"
            return f"{region}, {walk}, tile {self.forward}, {self.forward.warps} warps"
        parts = f"cut into {self.parts.parts_r0} x {self.parts.axes.parts_r1}"
        return f"{region}, {parts}, tile {self.parts}; normalized in tiles of {self.apply}"

    def mask_index(self, channels: int, positions: int) -> MaskIndex | None:
        """How the axes lead to the byte of a mask; None where only a division of the offset does."""

        def steps(axis: Axis) -> tuple[int, int, int, int]:
            """(div, step, mod, step) of an axis: its index is divided by `div` and taken modulo `mod`."""
            size, stride = axis
            if size == 1 or (positions <= stride and stride * size <= channels * positions):
                return 1, 0, 1, 0
            if stride >= channels * positions:
                return 1, stride // channels, 1, 0
            if stride * size <= positions:
                return 1, stride, 1, 0
            inside = stride if stride < positions else 0
            return channels * positions // stride, positions, max(1, positions // stride), inside

        k0, k1, r0, r1 = _axes(self.view, self.index.period, self.index.inner, self.slabs)
        of_r0, of_r1 = steps(r0), steps(r1)
        if of_r0[0] != 1 or of_r1[0] != 1:
            return None
        rest = (of_r0[1], of_r1[1], channels, positions)
        outer, inner = steps(k0), steps(k1)
        if k1.size == 1:
            return MaskIndex(*outer, *rest)
        if k0.size == 1:
            return MaskIndex(*inner, *rest)
        if outer[0] != 1 or inner[0] != 1:
            return None
        return MaskIndex(k1.size, outer[1], k1.size, inner[1], *rest)


def schedule(
    view: tuple[int, int, int, int], period: int, inner: int, itemsize: int = 2, slabs: int = 1, gaps: Gaps = NO_GAPS,
    chunk: int = CHUNK,
) -> Schedule:  # fmt: skip
    """The schedule of a plan with these numbers (`normkit.plan.Plan`).

    Args:
        view, period, inner, slabs, gaps: of the plan.
        itemsize: bytes of an element.
        chunk: elements of a tile that is walked or only normalized.
    """
    axes = k0, k1, r0, r1 = _axes(view, period, inner, slabs)
    along, index = _weight_index(axes, period, inner)
    if slabs > 1:
        along, index = _of_slabs(along, index, k0.size * k1.size // slabs, slabs)
    make = inverse = Passes(*axes, along, 16 // itemsize, chunk, gaps)
    sets = 1
    if index.cell_mod == k0.size and index.cell_div == k1.size:
        sets = k0.size
    elif along is Along.R1 and not make.between and slabs == index.cell_div == 1 and _takes_turns(index, r1.size):
        # Rows that have their weights in turn: a program takes those with the same weights.
        sets, step = index.cell_mod, r0.size * r1.size
        axes = Axis(sets, step), Axis(k1.size // sets, sets * step), r0, r1
        inverse = Passes(*axes, along, 16 // itemsize, chunk, gaps, transposed=True)
    backward = inverse.backward()
    return Schedule(
        k0=k0.size,
        k1=k1.size,
        r0=r0.size,
        r1=r1.size,
        index=index,
        slabs=slabs,
        sets=sets,
        features=inverse.features(backward),
        forward=make.forward(),
        backward=backward,
        gated=inverse.backward(WORDS_GATED),
        parts=make.parts(),
        sums=inverse.sums(),
        apply=make.apply(),
        view=view,
        gaps=gaps,
        itemsize=itemsize,
        chunk=chunk,
    )


def _takes_turns(index: WeightIndex, size: int) -> bool:
    """Whether rows of so many weights have all sets of them in turn."""
    return index.cell_mod > 1 and index.cell_mod * size == index.period


def _axes(view: tuple[int, int, int, int], period: int, inner: int, slabs: int) -> tuple[Axis, Axis, Axis, Axis]:
    """k0, k1, r0 and r1. A region in one piece is cut in two axes where the weights change.

    Rows have their slabs as k0, so that no tile has rows of two slabs.
    """
    k0, r0, k1, r1 = view
    if k1 != 1:
        return Axis(k0, r0 * k1 * r1), Axis(k1, r1), Axis(r0, k1 * r1), Axis(r1, 1)
    count = r0 * r1
    if inner >= count or (period * inner >= count and inner == 1):
        r0, r1 = 1, count
    elif period * inner >= count:
        r0, r1 = count // inner, inner
    else:
        r0, r1 = count // (period * inner), period * inner
    return (
        Axis(slabs, count if slabs == 1 else k0 // slabs * count),
        Axis(k0 // slabs, count),
        Axis(r0, r1),
        Axis(r1, 1),
    )


def _of_slabs(along: Along, index: WeightIndex, cells: int, slabs: int) -> tuple[Along, WeightIndex]:
    """The same for so many slabs, each with so many cells, from the index for one slab."""
    period = index.period
    if index.cell_mod > 1 and index.cell_div * index.cell_mod == cells and index.cell_mod * index.cell_step == period:
        return along, index._replace(cell_mod=index.cell_mod * slabs)
    if index.cell_mod > 1:
        along = Along.OFFSET
    return along, index._replace(cell_div=cells, cell_mod=slabs, cell_step=period)


def _weight_index(axes: tuple[Axis, Axis, Axis, Axis], period: int, inner: int) -> tuple[Along, WeightIndex]:
    """The axis along which weights vary inside a cell, and how an element's weight is found."""

    def steps(axis: Axis) -> tuple[int, int, int] | None:
        """(elements of the axis with one weight, weights along it, how far these are apart); None for no weights."""
        size, stride = axis
        if size == 1 or stride * size <= inner or stride >= period * inner:
            return None
        return (
            max(1, inner // stride),
            min(period * inner, stride * size) // max(inner, stride),
            max(1, stride // inner),
        )

    def is_pure(axis: Axis) -> bool:
        return inner <= axis.stride and axis.stride * axis.size <= period * inner

    by_offset = Along.OFFSET, WeightIndex(1, 1, 0, 0, period, inner)
    of_k0, of_k1, of_r0, of_r1 = map(steps, axes)
    _, k1, r0, r1 = axes
    mixed = (of_r0 is not None and not is_pure(r0)) or (of_r1 is not None and not is_pure(r1))
    of_cell = of_k1 or of_k0
    if mixed or (of_k0 and of_k1) or (of_r0 and of_r1):
        return by_offset
    div, mod, step = of_cell or (1, 1, 1)
    if of_k0:
        div *= k1.size
    if not of_r0 and not of_r1:
        return Along.CELL, WeightIndex(div, mod, step, 0, period, inner)
    size, row_step = (r0.size, of_r0[2]) if of_r0 else (r1.size, 0)
    if of_cell and (of_cell[0] != 1 or step != size or row_step > 1):
        return by_offset
    return Along.R0 if of_r0 else Along.R1, WeightIndex(div, mod, step, row_step, period, inner)
