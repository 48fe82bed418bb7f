"""Weight normalization: lengths of regions, weights of a given length, and their gradient."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from normkit.kernels.triton.code.constants import WALK_GIVEN, WALK_TWICE, WALK_WHOLE
from normkit.kernels.triton.code.moments import quotient, sqrt
from normkit.kernels.triton.code.tiles import (
    elements_of,
    place_of_columns,
    place_of_parts,
    sum_over_cell,
    task_of_program,
)


class Length(NamedTuple):
    """Of each cell: its length is ``largest * sqrt(squares)``, which no square overflows on the way."""

    largest: tl.tensor
    squares: tl.tensor
    """Sum of squares, each divided by the square of `largest`."""


@triton.jit
def with_tile(length, value):
    """The length of what was seen so far and of one more tile."""
    largest = tl.maximum(length.largest, tl.max(tl.abs(value), 1))
    divisor = tl.where(largest > 0, largest, 1.0)
    shrink = length.largest / divisor
    scaled = value / divisor[:, None]
    return Length(largest, length.squares * shrink * shrink + tl.sum(scaled * scaled, 1))


@triton.jit
def walked_length(v, columns, part, axes, tile: tl.constexpr, F: tl.constexpr):
    zero = tl.zeros([tile.k1 * tile.columns], F)
    length = Length(zero, zero)
    for at0 in range(part.begin0, part.end0, tile.r0):
        for at1 in range(part.begin1, part.end1, tile.r1):
            elements = elements_of(columns, part, at0, at1, axes, tile)
            length = with_tile(length, tl.load(v + elements.offset, mask=elements.inside, other=0.0).to(F))
    return length


@triton.jit
def merge_columns(length, tile: tl.constexpr):
    """The lengths of cells from those of their columns."""
    if tile.columns == 1:
        return length
    else:
        largest = tl.max(tl.reshape(length.largest, [tile.k1, tile.columns]), 1)
        largest = tl.broadcast_to(largest[:, None], [tile.k1, tile.columns])
        largest = tl.reshape(largest, [tile.k1 * tile.columns])
        shrink = length.largest / tl.where(largest > 0, largest, 1.0)
        return Length(largest, sum_over_cell(length.squares * shrink * shrink, tile))


@triton.jit(do_not_specialize=["k1", "all_columns"])
def part_lengths(v, parts, k1, all_columns, axes, tile: tl.constexpr):
    """Of each part of a region: ``parts[0..1, part, column]``, a column for each cell unless flat."""
    F: tl.constexpr = tl.float64 if v.dtype.element_ty == tl.float64 else tl.float32
    columns, part, number = task_of_program(k1, axes, tile)
    length = walked_length(v, columns, part, axes, tile, F)
    at = number * all_columns + place_of_columns(columns, tile)
    tl.store(parts + at, length.largest, mask=columns.exists)
    tl.store(parts + axes.parts * all_columns + at, length.squares, mask=columns.exists)


@triton.jit(do_not_specialize=["cells", "number"])
def merge_lengths(
    parts, length_out, cells, number, COLUMNS: tl.constexpr, CELLS: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """The lengths of whole regions from those of their parts."""
    cell, at, present = place_of_parts(cells, number, COLUMNS, CELLS, PARTS)
    each = tl.load(parts + at, mask=present, other=0.0)
    squares = tl.load(parts + number * cells * COLUMNS + at, mask=present, other=0.0)
    largest = tl.max(each, 1)
    shrink = each / tl.where(largest > 0, largest, 1.0)[:, None]
    found = Length(largest, tl.sum(squares * shrink * shrink, 1))
    tl.store(length_out + cell, length_of(found), mask=cell < cells)


@triton.jit(do_not_specialize=["cells", "number"])
def merge_along(parts, dg, cells, number, COLUMNS: tl.constexpr, CELLS: tl.constexpr, PARTS: tl.constexpr):
    """The sums over whole regions from those of their parts."""
    cell, at, present = place_of_parts(cells, number, COLUMNS, CELLS, PARTS)
    tl.store(dg + cell, tl.sum(tl.load(parts + at, mask=present, other=0.0), 1), mask=cell < cells)


@triton.jit
def length_of(found):
    return tl.where(found.largest > 0, found.largest * sqrt(found.squares), 1.0)


@triton.jit(do_not_specialize=["k1"])
def weight_norm(v, g, w, lengths, k1, axes, tile: tl.constexpr, WALK: tl.constexpr):
    """w = v * (g / length), and the length, 1 where all of v is 0, unless it is in memory."""
    F: tl.constexpr = tl.float64 if v.dtype.element_ty == tl.float64 else tl.float32
    columns, part, _ = task_of_program(k1, axes, tile)
    if WALK == WALK_WHOLE:
        elements = elements_of(columns, part, part.begin0, part.begin1, axes, tile)
        value = tl.load(v + elements.offset, mask=elements.inside, other=0.0).to(F)
        zero = tl.zeros([tile.k1 * tile.columns], F)
        length = length_of(merge_columns(with_tile(Length(zero, zero), value), tile))
    elif WALK == WALK_TWICE:
        length = length_of(merge_columns(walked_length(v, columns, part, axes, tile, F), tile))
    else:
        length = tl.load(lengths + columns.cell, mask=columns.exists, other=1.0)
    if WALK != WALK_GIVEN:
        tl.store(lengths + columns.cell, length, mask=columns.exists & (columns.place == 0))
    scale = quotient(tl.load(g + columns.cell, mask=columns.exists, other=0.0).to(F), length)
    for at0 in range(part.begin0, part.end0, tile.r0):
        for at1 in range(part.begin1, part.end1, tile.r1):
            if WALK != WALK_WHOLE:
                elements = elements_of(columns, part, at0, at1, axes, tile)
                value = tl.load(v + elements.offset, mask=elements.inside, other=0.0).to(F)
            tl.store(w + elements.offset, value * scale[:, None], mask=elements.inside)


@triton.jit
def load_direction(dw, v, length, elements, F: tl.constexpr):
    """A tile of v / length, and of dw."""
    direction = tl.load(v + elements.offset, mask=elements.inside, other=0.0).to(F) / length[:, None]
    return direction, tl.load(dw + elements.offset, mask=elements.inside, other=0.0).to(F)


@triton.jit
def walked_along(dw, v, length, columns, part, axes, tile: tl.constexpr, F: tl.constexpr):
    """The sum of dw times the direction."""
    total = tl.zeros([tile.k1 * tile.columns, tile.r0 * tile.r1], F)
    for at0 in range(part.begin0, part.end0, tile.r0):
        for at1 in range(part.begin1, part.end1, tile.r1):
            elements = elements_of(columns, part, at0, at1, axes, tile)
            direction, gradient = load_direction(dw, v, length, elements, F)
            total += gradient * direction
    return tl.sum(total, 1)


@triton.jit(do_not_specialize=["k1", "all_columns"])
def part_along(dw, v, length_in, parts, k1, all_columns, axes, tile: tl.constexpr):
    """Of each part of a region: ``parts[part, column]``."""
    F: tl.constexpr = tl.float64 if v.dtype.element_ty == tl.float64 else tl.float32
    columns, part, number = task_of_program(k1, axes, tile)
    length = tl.load(length_in + columns.cell, mask=columns.exists, other=1.0)
    along = walked_along(dw, v, length, columns, part, axes, tile, F)
    at = number * all_columns + place_of_columns(columns, tile)
    tl.store(parts + at, along, mask=columns.exists)


@triton.jit(do_not_specialize=["k1"])
def weight_norm_backward(dw, v, g, length_in, dv, dg, k1, axes, tile: tl.constexpr, WALK: tl.constexpr):
    """dv = g / length * (dw - direction * along), and dg = along, unless that is in memory."""
    F: tl.constexpr = tl.float64 if v.dtype.element_ty == tl.float64 else tl.float32
    columns, part, _ = task_of_program(k1, axes, tile)
    length = tl.load(length_in + columns.cell, mask=columns.exists, other=1.0)
    if WALK == WALK_WHOLE:
        elements = elements_of(columns, part, part.begin0, part.begin1, axes, tile)
        direction, gradient = load_direction(dw, v, length, elements, F)
        along = sum_over_cell(tl.sum(gradient * direction, 1), tile)
    elif WALK == WALK_TWICE:
        along = sum_over_cell(walked_along(dw, v, length, columns, part, axes, tile, F), tile)
    else:
        along = tl.load(dg + columns.cell, mask=columns.exists, other=0.0)
    if WALK != WALK_GIVEN:
        tl.store(dg + columns.cell, along, mask=columns.exists & (columns.place == 0))
    scale = quotient(tl.load(g + columns.cell, mask=columns.exists, other=0.0).to(F), length)
    for at0 in range(part.begin0, part.end0, tile.r0):
        for at1 in range(part.begin1, part.end1, tile.r1):
            if WALK != WALK_WHOLE:
                elements = elements_of(columns, part, at0, at1, axes, tile)
                direction, gradient = load_direction(dw, v, length, elements, F)
            tl.store(
                dv + elements.offset, (gradient - direction * along[:, None]) * scale[:, None], mask=elements.inside
            )
