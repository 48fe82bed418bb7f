"""Where the elements of a tile lie in memory, and their weights and mask bytes.

A program has a block of columns: those of the cells of its tile. It walks its part of the region, one tile at a time. A
tile is a matrix: columns of the block times elements along r0 and r1.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from normkit.kernels.triton.code.constants import (
    ALONG_COLUMN,
    ALONG_OFFSET,
    ALONG_R0,
    ALONG_R1,
    MASK_AXES,
    MASK_NONE,
)


class Columns(NamedTuple):
    """The columns of a block; one entry for each."""

    cell: tl.tensor
    place: tl.tensor
    """Which of its cell's columns it is."""
    exists: tl.tensor
    """False beyond the last cell, and for columns that only fill up a power of two."""
    offset: tl.tensor
    source: tl.tensor
    """The offset in x, whose rows may have gaps between them."""


class Part(NamedTuple):
    """A part of a region: from where to where it goes along r0 and r1."""

    begin0: tl.tensor
    end0: tl.tensor
    begin1: tl.tensor
    end1: tl.tensor


class Elements(NamedTuple):
    """The elements of a tile."""

    row: tl.tensor
    """Where the tile begins along r0."""
    r0: tl.tensor
    r1: tl.tensor
    offset: tl.tensor
    source: tl.tensor
    """The offset in x."""
    inside: tl.tensor
    """False beyond the end of the part, and in columns that do not exist."""
    full: tl.tensor
    """Whether the whole tile is inside the part."""


@triton.jit
def place_of_program(axes):
    """The block and part of this program, and how many programs share a part.

    The grid has one dimension: a GPU takes no more than 65,535 programs along the others.
    """
    number = tl.num_programs(0) // axes.parts
    return tl.program_id(0) % number, tl.program_id(0) // number, number


@triton.jit
def place_of_parts(cells, number, COLUMNS: tl.constexpr, CELLS: tl.constexpr, PARTS: tl.constexpr):
    """The cells of a program, where their parts and columns lie, and which of these there are."""
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    each = tl.arange(0, PARTS)
    present = (cell < cells)[:, None] & (each < number * COLUMNS)[None, :]
    at = (each // COLUMNS * (cells * COLUMNS) + each % COLUMNS)[None, :] + (cell * COLUMNS)[:, None]
    return cell, at, present


@triton.jit
def columns_of(block, k1, axes, tile: tl.constexpr):
    """The columns of the block with this number."""
    if tile.wide:
        block = tl.full([], 0, tl.int64) + block
    column = tl.arange(0, tile.k1 * tile.columns)
    if tile.flat:
        # Written with `width`, of which the compiler knows what divides it.
        width = axes.width * tile.align
        across = tl.cdiv(width, tile.k1)
        outer = block // across
        lane = block % across * tile.k1 + column
        if tile.used_columns == 1:
            cell = outer * width + lane
        else:
            cell = outer * k1 + lane // tile.used_columns
        offset = outer * (axes.stride_k0 * tile.align) + lane
        return Columns(cell, lane % tile.used_columns, lane < width, offset, offset)
    else:
        across = tl.cdiv(k1, tile.k1)
        outer = block // across
        inner = block % across * tile.k1 + column // tile.columns
        place = column % tile.columns
        exists = inner < k1
        if tile.used_columns < tile.columns:
            exists = exists & (place < tile.used_columns)
        if tile.columns > 1 and tile.used_columns == tile.columns:
            # Written as one sum, so that the compiler sees that columns are neighbours.
            within = block % across * (tile.k1 * tile.columns) + column
        else:
            within = inner * (axes.stride_k1 * tile.align) + place
        cell = inner * axes.step + outer if tile.transposed else outer * k1 + inner
        offset = outer * (axes.stride_k0 * tile.align) + within
        source = offset
        if tile.strided:
            source = cell // axes.group * (axes.outer * tile.align) + cell % axes.group * (axes.pitch * tile.align)
        return Columns(cell, place, exists, offset, source)


@triton.jit
def sum_over_cell(columns, tile: tl.constexpr):
    """The sum of a cell's columns, for each of them."""
    if tile.columns == 1:
        return columns
    else:
        total = tl.sum(tl.reshape(columns, [tile.k1, tile.columns]), 1)
        total = tl.broadcast_to(total[:, None], [tile.k1, tile.columns])
        return tl.reshape(total, [tile.k1 * tile.columns])


@triton.jit
def part_of(number, axes, tile: tl.constexpr):
    """The part with this number."""
    if tile.wide:
        number = tl.full([], 0, tl.int64) + number
    begin0 = number // axes.parts_r1 * axes.part_r0
    end0 = tl.minimum(begin0 + axes.part_r0, axes.r0)
    if tile.r1 == 1:
        return Part(begin0, end0, begin0 * 0, begin0 * 0 + 1)
    else:
        begin1 = number % axes.parts_r1 * (axes.part_r1 * tile.align)
        end1 = tl.minimum(begin1 + axes.part_r1 * tile.align, axes.r1 * tile.align)
        return Part(begin0, end0, begin1, end1)


@triton.jit
def task_of_program(k1, axes, tile: tl.constexpr):
    """The columns and the part of this program, and the part's number."""
    block, number, _ = place_of_program(axes)
    return columns_of(block, k1, axes, tile), part_of(number, axes, tile), number


@triton.jit
def place_of_columns(columns, tile: tl.constexpr):
    """Where sums of each column lie among those of all columns."""
    return columns.cell * tile.used_columns + columns.place


@triton.jit
def size_of_r1(axes, tile: tl.constexpr):
    if tile.r1 == 1:
        return 1
    else:
        return axes.r1 * tile.align


@triton.jit
def elements_of(columns, part, at0, at1, axes, tile: tl.constexpr):
    """The tile of a part that begins at these places along r0 and r1."""
    row = tl.arange(0, tile.r0 * tile.r1)
    r0 = at0 + row // tile.r1
    r1 = at1 + row % tile.r1
    if tile.wide:
        r0 = r0.to(tl.int64)
    if tile.even:
        inside = tl.broadcast_to(columns.exists[:, None], [tile.k1 * tile.columns, tile.r0 * tile.r1])
        full = True
    else:
        inside = columns.exists[:, None] & ((r0 < part.end0) & (r1 < part.end1))[None, :]
        full = (at0 + tile.r0 <= part.end0) & (at1 + tile.r1 <= part.end1)
    within = (r0 * (axes.stride_r0 * tile.align) + r1)[None, :]
    offset = columns.offset[:, None] + within
    source = columns.source[:, None] + within if tile.strided else offset
    return Elements(at0, r0, r1, offset, source, inside, full)


@triton.jit
def blocks_of_program(first, programs, blocks, k1, sets, tile: tl.constexpr, SETS: tl.constexpr):
    """The blocks that a program takes: from, to and step. With SETS they are those of one index of k0."""
    if SETS:
        across = tl.cdiv(k1, tile.k1)
        together = programs // sets
        begin = first // together * across
        return begin + first % together, begin + across, together
    else:
        return first, blocks, programs


@triton.jit
def first_weight(columns, index, ALONG: tl.constexpr):
    """The number of each column's first weight."""
    first = columns.cell // index.cell_div % index.cell_mod * index.cell_step
    if ALONG == ALONG_COLUMN:
        first += columns.place
    return first


@triton.jit
def load_weight(
    pointer, columns, first, part, elements, index, flags: tl.constexpr, tile: tl.constexpr, F: tl.constexpr
):
    """The weights of a tile, or one for each of its columns or rows."""
    if flags.along == ALONG_OFFSET:
        at = first[:, None] + elements.offset // index.inner % index.period
        weight = tl.load(pointer + at, mask=elements.inside, other=0.0)
    elif flags.along == ALONG_R0 and tile.r0 == 1:
        weight = tl.load(pointer + first + elements.row * index.row_step, mask=columns.exists, other=0.0)[:, None]
    elif flags.along == ALONG_R0 and flags.alike and tile.k1 > 1:
        at = elements.r0 * index.row_step
        weight = tl.load(pointer + at, mask=elements.r0 < part.end0, other=0.0)[None, :]
    elif flags.along == ALONG_R0:
        at = first[:, None] + (elements.r0 * index.row_step)[None, :]
        weight = tl.load(pointer + at, mask=elements.inside, other=0.0)
    elif flags.along == ALONG_R1:
        at = first[:, None] + elements.r1[None, :]
        weight = tl.load(pointer + at, mask=elements.inside, other=0.0, eviction_policy="evict_last")
    else:
        weight = tl.load(pointer + first, mask=columns.exists, other=0.0)[:, None]
    return weight.to(F)


@triton.jit
def centered(weight, flags: tl.constexpr):
    """The factor that a weight means."""
    if flags.zero_centered:
        return weight + 1.0
    else:
        return weight


@triton.jit
def load_beside(pointer, elements, valid, MASK: tl.constexpr, F: tl.constexpr):
    """A tile of a tensor that lies in memory as y does: a gate, or what is added. Padding may hold anything."""
    value = tl.load(pointer + elements.offset, mask=elements.inside, other=0.0, eviction_policy="evict_first")
    if MASK == MASK_NONE:
        return value.to(F)
    else:
        return tl.where(valid, value.to(F), 0.0)


@triton.jit
def valid_elements(mask, columns, elements, index, MASK: tl.constexpr):
    """Which elements of a tile are inside and not padding."""
    if MASK == MASK_NONE:
        return elements.inside
    elif MASK == MASK_AXES:
        of_cell = columns.cell // index.outer_div * index.outer_step + columns.cell % index.inner_mod * index.inner_step
        of_column = of_cell + columns.place * index.r1_step
        at = of_column[:, None] + (elements.r0 * index.r0_step + elements.r1 * index.r1_step)[None, :]
        return elements.inside & (tl.load(mask + at, mask=elements.inside, other=0) != 0)
    else:
        at = elements.offset // (index.channels * index.positions) * index.positions + elements.offset % index.positions
        return elements.inside & (tl.load(mask + at, mask=elements.inside, other=0) != 0)
