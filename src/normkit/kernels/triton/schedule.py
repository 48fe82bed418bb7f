"""How a plan is carried out on a GPU: which elements a program takes, how often it reads them, who adds up what.

A plan's K R K R view becomes axes with one stride each. A program takes one index of ``k0`` and a tile of the others:
some cells along ``k1``, and some elements of each along the reduced axes ``r0`` and ``r1``. Where cells lie between
one another and r1 is short, the elements of r1 become the *columns* of a cell, so that threads read along memory.
Pure arithmetic, no Triton.

Tile and number of parts follow from the region alone, never from the number of regions: so the bits of a sample's
output do not depend on the batch that it is in.

Each threshold says where it comes from. "H200" is one NVIDIA H200 with torch 2.11, Triton 3.6 and bfloat16, its cache
emptied before each call. A figure such as .92 is the time to copy the same tensors divided by the time of the call.

>>> print(schedule((32, 64, 1, 12544), 64, 12544))      # GroupNorm(1) of [32, 64, 112, 112]
region 64 x 12544, tile 1 x 1 x 2048, cut into 22 x 1, 4 warps
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from normkit.kernels.triton.arguments import Along, Axes, MaskIndex, Tile, Walk, WeightIndex

WHOLE = 16384
"""Elements of the largest tile; a region that fits is read once and stays in registers.

At 16 warps these are 32 registers a thread for x, and 32 for dy in the backward pass, of the 128 that such a program
has on NVIDIA's GPUs. On the H200, a prototype of InstanceNorm on regions of 12,544 elements took 33 us this way, and
torch.compile 40.
"""
CHUNK = 4096
"""Elements of a tile of a region that is walked.

On the H200, a prototype's pass over contiguous regions was fastest with 4096 elements at 8 warps (.92 forward, .95
backward); rows of 8,192 and more had their optimum between 1024 and 8192.
"""
NEAR, NEAR_BETWEEN = 131072, 32768
"""Elements that one program walks twice, the second time out of the cache; fewer for cells between one another.

A guess that no GPU has confirmed. The H200 has been timed with it (GroupNorm, 25,088 elements: .41 forward), but with
no other value.
"""
SHARE = 32768
"""Elements of a part, where several programs share a region.

A guess, and too large for batch norm on the H200: [32, 64, 112, 112] gets 230 programs for 132 multiprocessors, and
reaches .07 in channels_last. A prototype was fastest with eight programs for each multiprocessor.
"""
PARTS = 256
"""Most parts of a region. A program holds the moments of all parts in one tile: 32 x 256 elements for `LINE` cells."""
LINE = 32
"""Columns that a tile should have side by side: 32 float32 are 128 bytes, a line of NVIDIA's caches.

In bfloat16 they are half a line; on the H200, a prototype was fastest with 64 to 256 columns.
"""
SMALLEST = 1024
"""Elements that a tile should have: 16 for each thread of two warps. A guess that no GPU has measured."""
PER_WARP = 512
"""Elements of a tile for each warp, 16 for each thread. A guess that no GPU has measured."""
MOST_WARPS = 16
"""Warps of a program at most: with 16, a thread has up to 128 registers on NVIDIA's GPUs, with 32 only 64."""
FULL_ROW = 8
"""A row of at least 1 / FULL_ROW of a walked tile gets its own tile, which needs one weight if weights vary along r0. A
guess that no GPU has measured."""
FAR = 2**31
"""Offsets have 64 bits for tensors of this size, which exceeds the range of a signed 32-bit number."""


@dataclass(frozen=True)
class Schedule:
    """One plan, ready for launches.

    Attributes:
        k0, k1: numbers of cells, outer and inner.
        axes, index, tile: what kernels are called with.
        parts_r0: number of parts along r0.
        walk: where moments come from, if they are not given.
        along: the axis along which weights vary.
        features: the axis along which gradients of weights are added up; OFFSET if `feature_sums` does that.
        warps: of a program.
        view: of the plan.
    """

    k0: int
    k1: int
    axes: Axes
    index: WeightIndex
    tile: Tile
    parts_r0: int
    walk: Walk
    along: Along
    features: Along
    warps: int
    view: tuple[int, int, int, int]

    @cached_property
    def count(self) -> int:
        """Elements of a region."""
        return self.tile.used_columns * self.axes.r0 * self.axes.r1

    @cached_property
    def cells(self) -> int:
        """Regions."""
        return self.k0 * self.k1

    @cached_property
    def columns(self) -> int:
        """Columns of all cells; each has its own sums in the backward pass."""
        return self.cells * self.tile.used_columns

    @cached_property
    def numel(self) -> int:
        return self.cells * self.count

    @cached_property
    def parts(self) -> int:
        return self.parts_r0 * self.axes.parts_r1

    @cached_property
    def blocks(self) -> int:
        """Tiles side by side."""
        return self.k0 * _ceil(self.k1, self.tile.k1)

    def __str__(self) -> str:
        walk = {
            Walk.WHOLE: "read once",
            Walk.TWICE: "walked twice",
            Walk.PARTS: f"cut into {self.parts_r0} x {self.axes.parts_r1}",
            Walk.GIVEN: "moments given",
        }[self.walk]
        tile = f"{self.tile.k1 * self.tile.columns} x {self.tile.r0} x {self.tile.r1}"
        region = f"{self.axes.r0} x {self.tile.used_columns * self.axes.r1}"
        return f"region {region}, tile {tile}, {walk}, {self.warps} warps"

    def mask_index(self, channels: int, positions: int) -> MaskIndex | None:
        """How the axes lead to the byte of a mask; None where only a division of the offset does."""

        def steps(size: int, stride: int) -> tuple[int, int, int, int]:
            """(div, step, mod, step) of an axis: its index is divided by `div` and taken modulo `mod`."""
            if size == 1 or (positions <= stride and stride * size <= channels * positions):
                return 1, 0, 1, 0
            if stride >= channels * positions:
                return 1, stride // channels, 1, 0
            if stride * size <= positions:
                return 1, stride, 1, 0
            inside = stride if stride < positions else 0
            return channels * positions // stride, positions, max(1, positions // stride), inside

        axes = self.axes
        of_r0 = steps(axes.r0, axes.stride_r0)
        of_r1 = steps(self.tile.used_columns * axes.r1, 1)
        if of_r0[0] != 1 or of_r1[0] != 1:
            return None
        rest = (of_r0[1], of_r1[1], channels, positions)
        outer, inner = steps(self.k0, axes.stride_k0), steps(self.k1, axes.stride_k1)
        if self.k1 == 1:
            return MaskIndex(*outer, *rest)
        if self.k0 == 1:
            return MaskIndex(*inner, *rest)
        if outer[0] != 1 or inner[0] != 1:
            return None
        return MaskIndex(self.k1, outer[1], self.k1, inner[1], *rest)


def schedule(view: tuple[int, int, int, int], period: int, inner: int, chunk: int = CHUNK) -> Schedule:
    """The schedule of a plan with these numbers (`normkit.plan.Plan`); `chunk` for tiles of another size."""
    k0, k1, r0, r1 = axes = _axes(view, period, inner)
    along, index = _weight_index(axes, period, inner)
    count = r0.size * r1.size
    between = k1.stride < count
    columns, length = 1, r1.size
    if between and 1 < length < LINE:
        columns, length = length, 1
        along = Along.COLUMN if along is Along.R1 else along
    (tile_k1, tile_r0, tile_r1), walk = _tile(k1.size, columns, r0.size, length, between, chunk)
    parts_r0, parts_r1, part_r0, part_r1 = 1, 1, r0.size, length
    if walk is Walk.PARTS:
        pieces_r0, pieces_r1 = _ceil(r0.size, tile_r0), _ceil(length, tile_r1)
        # Every program reads three numbers of every part. With at most sqrt(count / 30) parts that is a tenth of
        # an element for each element of the region, some five percent of what is read and written anyway.
        parts = max(1, min(PARTS, _ceil(tile_k1 * count, SHARE), math.isqrt(count // 30)))
        parts_r0 = min(parts, pieces_r0)
        parts_r1 = min(_ceil(parts, parts_r0), pieces_r1)
        part_r0, part_r1 = _ceil(pieces_r0, parts_r0) * tile_r0, _ceil(pieces_r1, parts_r1) * tile_r1
        parts_r0, parts_r1 = _ceil(r0.size, part_r0), _ceil(length, part_r1)
    width = _power(columns)
    wide = math.prod(view) >= FAR
    return Schedule(
        k0=k0.size,
        k1=k1.size,
        axes=Axes(r0.size, length, k0.stride, k1.stride, r0.stride, part_r0, part_r1, parts_r1),
        index=index,
        tile=Tile(tile_k1, width, tile_r0, tile_r1, columns, _power(parts_r0 * parts_r1), wide),
        parts_r0=parts_r0,
        walk=walk,
        along=along,
        features=_features(along, r1.size if columns == 1 else 1, tile_r1, columns),
        warps=max(1, min(MOST_WARPS, tile_k1 * width * tile_r0 * tile_r1 // PER_WARP)),
        view=view,
    )


class _Axis(NamedTuple):
    size: int
    stride: int


def _axes(view: tuple[int, int, int, int], period: int, inner: int) -> tuple[_Axis, _Axis, _Axis, _Axis]:
    """k0, k1, r0 and r1. A region in one piece is cut in two axes where the weights change."""
    k0, r0, k1, r1 = view
    if k1 != 1:
        return _Axis(k0, r0 * k1 * r1), _Axis(k1, r1), _Axis(r0, k1 * r1), _Axis(r1, 1)
    count = r0 * r1
    if inner >= count or (period * inner >= count and inner == 1):
        r0, r1 = 1, count
    elif period * inner >= count:
        r0, r1 = count // inner, inner
    else:
        r0, r1 = count // (period * inner), period * inner
    return _Axis(1, count), _Axis(k0, count), _Axis(r0, r1), _Axis(r1, 1)


def _tile(k1: int, columns: int, r0: int, r1: int, between: bool, chunk: int) -> tuple[tuple[int, int, int], Walk]:
    """Sizes of a tile along k1, r0 and r1, and how many times a region is read."""
    count, columns = columns * r0 * r1, _power(columns)
    # Cells that lie between one another are read side by side, for whole lines of memory.
    together = min(_power(k1), max(1, LINE // (columns * r1))) if between else 1
    whole_r0, whole_r1 = _power(r0), _power(r1)
    if together * columns * whole_r0 * whole_r1 <= WHOLE:
        tile_k1 = max(together, SMALLEST // (columns * whole_r0 * whole_r1))
        return (min(tile_k1, _power(k1)) if between else tile_k1, whole_r0, whole_r1), Walk.WHOLE
    most = chunk // (together * columns)
    tile_r1 = min(whole_r1, most) if whole_r1 <= most else _least_waste(r1, most)
    tile_r0 = 1 if tile_r1 >= chunk // FULL_ROW else min(whole_r0, most // tile_r1)
    near = together * count <= (NEAR_BETWEEN if between else NEAR)
    return (together, tile_r0, tile_r1), Walk.TWICE if near else Walk.PARTS


def _features(along: Along, r1: int, tile_r1: int, columns: int) -> Along:
    """How gradients of weights are added up; OFFSET where a tile cannot hold the sums along the weights' axis."""
    if along is Along.COLUMN:
        return Along.CELL
    if (along is Along.R1 and tile_r1 < r1) or (along is Along.R0 and columns > 1):
        return Along.OFFSET
    return along


def _ceil(size: int, piece: int) -> int:
    return -(-size // piece)


def _power(size: int) -> int:
    """The next power of two."""
    return 1 << max(0, size - 1).bit_length()


def _least_waste(size: int, most: int) -> int:
    """`most` or half of it, both powers of two: the one whose multiples cover `size` better, else the larger."""
    return min((most, most // 2), key=lambda piece: (round(_ceil(size, piece) * piece / size, 1), -piece))


def _weight_index(axes: tuple[_Axis, _Axis, _Axis, _Axis], period: int, inner: int) -> tuple[Along, WeightIndex]:
    """The axis along which weights vary inside a cell, and how an element's weight is found."""

    def steps(axis: _Axis) -> tuple[int, int, int] | None:
        """(elements of the axis with one weight, weights along it, how far these are apart); None for no weights."""
        size, stride = axis
        if size == 1 or stride * size <= inner or stride >= period * inner:
            return None
        return (
            max(1, inner // stride),
            min(period * inner, stride * size) // max(inner, stride),
            max(1, stride // inner),
        )

    def is_pure(axis: _Axis) -> bool:
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
