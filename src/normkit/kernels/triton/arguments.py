"""The tuples that kernels take in place of single numbers. A schedule holds them ready; kernels read them by name.

Triton treats each number of a tuple as an argument: 1 and multiples of 16 are compiled in. Numbers that follow the
size of the batch stay outside, because a tuple has no exception from that. `Tile` is a constant of the kernel as a
whole. No Triton here.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Walk(IntEnum):
    """Where the moments of a region come from."""

    WHOLE = 0
    """From one tile, which stays in registers."""
    TWICE = 1
    """From a first walk over the region; a second walk normalizes it."""
    PARTS = 2
    """From the moments of parts, which another kernel has computed."""
    GIVEN = 3
    """From the caller."""


class Along(IntEnum):
    """The axis along which weights vary inside a cell."""

    NONE = 0
    """No weights are asked for."""
    CELL = 1
    """One weight serves the whole cell."""
    R0 = 2
    R1 = 3
    OFFSET = 4
    """No single axis: the weight follows from the offset, by division."""
    COLUMN = 5


class MaskIndexing(IntEnum):
    """How kernels find an element's byte in a mask."""

    NONE = 0
    """There is no mask."""
    AXES = 1
    """From the cell and the places along r0 and r1."""
    OFFSET = 2
    """From the offset, by division."""


class Axes(NamedTuple):
    """Sizes, strides and parts of the axes; the columns of a cell and r1 have stride 1."""

    r0: int
    r1: int
    stride_k0: int
    stride_k1: int
    stride_r0: int
    part_r0: int
    """Size of a part along r0."""
    part_r1: int
    parts_r1: int
    """Number of parts along r1."""


class WeightIndex(NamedTuple):
    """Which weight belongs to an element.

    The cell's first one is ``cell // cell_div % cell_mod * cell_step``. To it comes ``r0 * row_step``, ``r1`` or the
    column, if weights vary along that axis (`Along`). Always true is ``offset // inner % period``, but slow.
    """

    cell_div: int
    cell_mod: int
    cell_step: int
    row_step: int
    period: int
    inner: int


class MaskIndex(NamedTuple):
    """Where the byte of a mask is that belongs to an element; a mask has one byte for all channels of a position.

    It is at ``cell // outer_div * outer_step + cell % inner_mod * inner_step + r0 * r0_step + r1 * r1_step``. Always
    true is ``offset // (channels * positions) * positions + offset % positions``, but slow.
    """

    outer_div: int
    outer_step: int
    inner_mod: int
    inner_step: int
    r0_step: int
    r1_step: int
    channels: int
    positions: int


class Tile(NamedTuple):
    """What a kernel is compiled for: ``k1 * columns`` columns times ``r0 * r1`` elements of each, all powers of two."""

    k1: int
    columns: int
    r0: int
    r1: int
    used_columns: int
    """How many columns a cell has."""
    parts: int
    """Room for the moments of so many parts."""
    wide: bool
    """Whether offsets have 64 bits."""


class ForwardOptions(NamedTuple):
    """What `normalize` is compiled for."""

    walk: int
    along: int
    mask: int
    activation: int
    center: bool
    eps: float


class BackwardOptions(NamedTuple):
    """What the kernels of the backward pass are compiled for."""

    features: int
    """The axis along which gradients of weights are added up."""
    per_cell: bool
    """Whether each cell has sums of its own, since cells have different weights."""
    along: int
    mask: int
    activation: int
    eps: float


class FeatureView(NamedTuple):
    """What `feature_sums` finds an element's weight and cell by."""

    period: int
    inner: int
    outer_size: int
    """Elements under one index of K0."""
    k1: int
    r1: int
