"""The tuples that kernels take in place of single numbers. A schedule holds them ready; kernels read them by name.

Triton treats each number of a tuple as an argument, and compiles in 1 and whether it is a multiple of 16. Numbers that
follow the batch size stay single arguments, because Triton has no exception for numbers in tuples. Pointers do, too,
because the launcher looks at their alignment. `Tile` and the flags are constants of a kernel; no kernel may name them
`options`, because Triton makes a function of its parameters that ends in ``**options``. Imports no Triton.
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
    GIVEN = 2
    """From memory: the caller has given them, or other kernels have computed them from parts of the region."""


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
    """Sizes, strides and parts of the axes; the columns of a cell and r1 have stride 1.

    What is marked with (a) is divided by the tile's `align`. The kernels multiply by it again, and so the compiler
    knows that it divides their offsets: then it reads several elements at a time.
    """

    r0: int
    r1: int
    """(a)"""
    width: int
    """(a) Columns of all cells under one index of k0, where cells lie between one another; else 0."""
    stride_k0: int
    """(a)"""
    stride_k1: int
    """(a); not used if the columns are flat."""
    stride_r0: int
    """(a)"""
    part_r0: int
    """Size of a part along r0."""
    part_r1: int
    """(a) Size of a part along r1."""
    parts_r1: int
    """Number of parts along r1."""
    parts: int
    """Number of parts of each region."""
    step: int = 0
    """How far the numbers of cells along k1 are apart, where the tile is transposed."""
    group: int = 0
    """Rows of x that are `pitch` apart, in groups that are `outer` apart, where the tile is strided."""
    pitch: int = 0
    """(a)"""
    outer: int = 0
    """(a)"""


class WeightIndex(NamedTuple):
    """Which weight belongs to an element.

    The cell's first weight is ``cell // cell_div % cell_mod * cell_step``. If weights vary along an axis (`Along`),
    ``r0 * row_step``, ``r1`` or the column is added. To add ``offset // inner % period`` holds for every region, but is
    slow.
    """

    cell_div: int
    cell_mod: int
    cell_step: int
    row_step: int
    period: int
    inner: int


class MaskIndex(NamedTuple):
    """Where the byte of a mask is that belongs to an element; a mask has one byte for all channels of a position.

    It is at ``cell // outer_div * outer_step + cell % inner_mod * inner_step + r0 * r0_step + r1 * r1_step``.
    ``offset // (channels * positions) * positions + offset % positions`` holds for every region, but is slow.
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
    """The tile of a program: columns times ``r0 * r1`` elements of each, all powers of two."""

    k1: int
    """Cells of the tile; or if it is flat, columns."""
    columns: int
    """Columns of a cell, filled up to a power of two; 1 if the tile is flat."""
    r0: int
    r1: int
    used_columns: int
    """How many columns a cell has."""
    flat: bool
    """Whether the columns of all cells lie side by side, so that a tile may have a part of a cell's."""
    along_r1: bool
    """Whether the elements that a lane takes at once are neighbours along r1, else along r0."""
    group: int
    """How many elements a lane takes at once."""
    even: bool
    """Whether every part consists of whole tiles."""
    align: int
    """A power of two that divides strides and sizes."""
    wide: bool
    """Whether offsets have 64 bits."""
    transposed: bool = False
    """Whether the numbers of cells go along k0 first."""
    strided: bool = False
    """Whether the rows of x have gaps between them; all other tensors are dense."""


class ForwardFlags(NamedTuple):
    """The constants of `normalize`, apart from its tile."""

    walk: int
    along: int
    alike: bool
    """Whether all cells have the same weights."""
    mask: int
    activation: int
    center: bool
    variance: bool
    """Whether the given moments hold the variance, else the deviation."""
    eps: float
    gate: int = 0
    """The number of the gate's activation."""
    gate_first: bool = False
    """Whether the gate multiplies x, else the output."""
    zero_centered: bool = False
    """Whether 1 is added to the weight."""
    cast_first: bool = False
    """Whether x_hat, weight and their product are rounded to the dtype of x."""


class BackwardFlags(NamedTuple):
    """The constants that kernels of the backward pass share, apart from their tile."""

    features: int
    """The axis along which gradients of weights are added up."""
    per_cell: bool
    """Whether each cell has its own sums, because cells have different weights."""
    sets: bool
    """Whether each index of k0 has its own weights: a program stays within one, and adds up what its cells share."""
    weight: bool
    """Whether the gradient of the weight is asked for, and"""
    bias: bool
    """that of the bias."""
    along: int
    alike: bool
    """Whether all cells have the same weights."""
    mask: int
    activation: int
    center: bool
    variance: bool
    """Whether the given moments hold the variance, else the deviation."""
    eps: float
    gate: int = 0
    """The number of the gate's activation."""
    gate_first: bool = False
    """Whether the gate multiplies x, else the output."""
    zero_centered: bool = False
    """Whether 1 is added to the weight."""


class FeatureView(NamedTuple):
    """How `feature_sums` finds an element's weight and cell."""

    period: int
    inner: int
    outer_size: int
    """Elements under one index of K0."""
    k1: int
    r1: int
    slab: int
    """Elements that have one set of weights."""
    parts: int
    """Programs that share the sums for a weight."""
    group: int
    """Rows of x, as in `Axes`, where it is strided; else 0."""
    pitch: int
    outer: int
