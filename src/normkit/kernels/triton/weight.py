"""Weight normalization: lengths of regions, weights of a given length, and their gradient."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from normkit.kernels.triton.constants import WALK_TWICE, WALK_WHOLE
from normkit.kernels.triton.moments import sqrt
from normkit.kernels.triton.tiles import columns_of, elements_of, part_of, sum_over_cell


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
    return merge_columns(length, tile)


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


@triton.jit(do_not_specialize=["k1", "cells"])
def part_lengths(v, parts, k1, cells, axes, tile: tl.constexpr):
    """Of each part of a region: ``parts[0..1, part, cell]``."""
    F: tl.constexpr = tl.float64 if v.dtype.element_ty == tl.float64 else tl.float32
    columns = columns_of(tl.program_id(0), k1, axes, tile)
    part = tl.program_id(1)
    length = walked_length(v, columns, part_of(part, axes), axes, tile, F)
    first = columns.exists & (columns.place == 0)
    tl.store(parts + part * cells + columns.cell, length.largest, mask=first)
    tl.store(parts + (tl.num_programs(1) + part) * cells + columns.cell, length.squares, mask=first)


@triton.jit
def length_of_parts(parts, columns, cells, tile: tl.constexpr):
    """The lengths of whole regions from those of their parts."""
    number = tl.num_programs(1)
    part = tl.arange(0, tile.parts)
    at = part[None, :] * cells + columns.cell[:, None]
    present = columns.exists[:, None] & (part < number)[None, :]
    each = tl.load(parts + at, mask=present, other=0.0)
    squares = tl.load(parts + number * cells + at, mask=present, other=0.0)
    largest = tl.max(each, 1)
    shrink = each / tl.where(largest > 0, largest, 1.0)[:, None]
    return Length(largest, tl.sum(squares * shrink * shrink, 1))


@triton.jit(do_not_specialize=["k1", "cells"])
def weight_norm(v, g, parts, w, length_out, k1, cells, axes, tile: tl.constexpr, WALK: tl.constexpr):
    """w = v * (g / length), and the length, 1 where all of v is 0."""
    F: tl.constexpr = tl.float64 if v.dtype.element_ty == tl.float64 else tl.float32
    columns = columns_of(tl.program_id(0), k1, axes, tile)
    part = part_of(tl.program_id(1), axes)
    if WALK == WALK_WHOLE:
        elements = elements_of(columns, part, part.begin0, part.begin1, axes, tile)
        value = tl.load(v + elements.offset, mask=elements.inside, other=0.0).to(F)
        zero = tl.zeros([tile.k1 * tile.columns], F)
        found = merge_columns(with_tile(Length(zero, zero), value), tile)
    elif WALK == WALK_TWICE:
        found = walked_length(v, columns, part, axes, tile, F)
    else:
        found = length_of_parts(parts, columns, cells, tile)
    length = tl.where(found.largest > 0, found.largest * sqrt(found.squares), 1.0)
    if tl.program_id(1) == 0:
        tl.store(length_out + columns.cell, length, mask=columns.exists & (columns.place == 0))
    scale = tl.load(g + columns.cell, mask=columns.exists, other=0.0) / length
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
    return sum_over_cell(tl.sum(total, 1), tile)


@triton.jit(do_not_specialize=["k1", "cells"])
def part_along(dw, v, length_in, parts, k1, cells, axes, tile: tl.constexpr):
    """Of each part of a region: ``parts[part, cell]``."""
    F: tl.constexpr = tl.float64 if v.dtype.element_ty == tl.float64 else tl.float32
    columns = columns_of(tl.program_id(0), k1, axes, tile)
    part = tl.program_id(1)
    length = tl.load(length_in + columns.cell, mask=columns.exists, other=1.0)
    along = walked_along(dw, v, length, columns, part_of(part, axes), axes, tile, F)
    tl.store(parts + part * cells + columns.cell, along, mask=columns.exists & (columns.place == 0))


@triton.jit(do_not_specialize=["k1", "cells"])
def weight_norm_backward(dw, v, g, length_in, parts, dv, dg, k1, cells, axes, tile: tl.constexpr, WALK: tl.constexpr):
    """dv = g / length * (dw - direction * along), and dg = along."""
    F: tl.constexpr = tl.float64 if v.dtype.element_ty == tl.float64 else tl.float32
    columns = columns_of(tl.program_id(0), k1, axes, tile)
    part = part_of(tl.program_id(1), axes)
    length = tl.load(length_in + columns.cell, mask=columns.exists, other=1.0)
    if WALK == WALK_WHOLE:
        elements = elements_of(columns, part, part.begin0, part.begin1, axes, tile)
        direction, gradient = load_direction(dw, v, length, elements, F)
        along = sum_over_cell(tl.sum(gradient * direction, 1), tile)
    elif WALK == WALK_TWICE:
        along = walked_along(dw, v, length, columns, part, axes, tile, F)
    else:
        each = tl.arange(0, tile.parts)
        present = columns.exists[:, None] & (each < tl.num_programs(1))[None, :]
        along = tl.sum(tl.load(parts + each[None, :] * cells + columns.cell[:, None], mask=present, other=0.0), 1)
    if tl.program_id(1) == 0:
        tl.store(dg + columns.cell, along, mask=columns.exists & (columns.place == 0))
    scale = tl.load(g + columns.cell, mask=columns.exists, other=0.0) / length
    for at0 in range(part.begin0, part.end0, tile.r0):
        for at1 in range(part.begin1, part.end1, tile.r1):
            if WALK != WALK_WHOLE:
                elements = elements_of(columns, part, at0, at1, axes, tile)
                direction, gradient = load_direction(dw, v, length, elements, F)
            tl.store(
                dv + elements.offset, (gradient - direction * along[:, None]) * scale[:, None], mask=elements.inside
            )
