"""Moments of tiles, and how those of several tiles, columns or parts become those of a region."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from normkit.kernels.triton.tiles import sum_over_cell


class Moments(NamedTuple):
    """Of each column or cell."""

    number: tl.tensor
    """Of valid elements."""
    mean: tl.tensor
    rest: tl.tensor
    """What is lost by rounding the mean; the mean in two pieces loses nothing in many merges."""
    squares: tl.tensor
    """Sum of squared deviations from the mean."""


@triton.jit
def sqrt(value):
    """Rounded to nearest, which `tl.sqrt` is for fp64 alone."""
    if value.dtype == tl.float32:
        return tl.sqrt_rn(value)
    else:
        return tl.sqrt(value)


@triton.jit
def reciprocal(value):
    """Rounded to nearest, which division is for fp64 alone."""
    if value.dtype == tl.float32:
        return tl.div_rn(1.0, value)
    else:
        return 1.0 / value


@triton.jit
def tile_moments(value, valid, count, CENTER: tl.constexpr):
    """Moments of each column of a tile; `value` is 0 where it is not valid."""
    if CENTER:
        n = tl.maximum(count, 1.0)
        mean = tl.sum(value, 1) / n
        deviation = tl.where(valid, value - mean[:, None], 0.0)
        rest = tl.sum(deviation, 1) / n
        deviation = tl.where(valid, deviation - rest[:, None], 0.0)
        return Moments(count, mean, rest, tl.sum(deviation * deviation, 1))
    else:
        zero = tl.sum(value, 1) * 0.0
        return Moments(count, zero, zero, tl.sum(value * value, 1))


@triton.jit
def merge(a, b, CENTER: tl.constexpr):
    """Chan's formula for two parts of the same column."""
    total = a.number + b.number
    if CENTER:
        share = b.number / tl.maximum(total, 1.0)
        difference = (b.mean - a.mean) + (b.rest - a.rest)
        step = a.rest + difference * share
        mean = a.mean + step
        taken = mean - a.mean
        rest = (a.mean - (mean - taken)) + (step - taken)
        return Moments(total, mean, rest, a.squares + b.squares + difference * difference * (a.number * share))
    else:
        return Moments(total, a.mean, a.rest, a.squares + b.squares)


@triton.jit
def merge_columns(columns, tile: tl.constexpr, CENTER: tl.constexpr):
    """The moments of cells from those of their columns, in two passes."""
    if tile.columns == 1:
        return columns
    else:
        total = sum_over_cell(columns.number, tile)
        if CENTER:
            share = columns.number / tl.maximum(total, 1.0)
            mean = sum_over_cell(columns.mean * share, tile)
            rest = sum_over_cell(((columns.mean - mean) + columns.rest) * share, tile)
            difference = ((columns.mean - mean) + columns.rest) - rest
            squares = sum_over_cell(columns.squares + difference * difference * columns.number, tile)
            return Moments(total, mean, rest, squares)
        else:
            return Moments(total, columns.mean, columns.rest, sum_over_cell(columns.squares, tile))


@triton.jit
def store_part(parts, part, moments, columns, cells):
    """Count, mean and sum of squares of one part: ``parts[0..2, part, cell]``."""
    at = part * cells + columns.cell
    step = tl.num_programs(1) * cells
    first = columns.exists & (columns.place == 0)
    tl.store(parts + at, moments.number, mask=first)
    tl.store(parts + step + at, moments.mean + moments.rest, mask=first)
    tl.store(parts + 2 * step + at, moments.squares, mask=first)


@triton.jit
def merge_parts(parts, columns, cells, tile: tl.constexpr, CENTER: tl.constexpr):
    """The moments of whole regions from those of their parts, in two passes."""
    number = tl.num_programs(1)
    part = tl.arange(0, tile.parts)
    at = part[None, :] * cells + columns.cell[:, None]
    present = columns.exists[:, None] & (part < number)[None, :]
    count = tl.load(parts + at, mask=present, other=0.0)
    mean = tl.load(parts + number * cells + at, mask=present, other=0.0)
    squares = tl.load(parts + 2 * number * cells + at, mask=present, other=0.0)
    total = tl.sum(count, 1)
    if CENTER:
        share = count / tl.maximum(total, 1.0)[:, None]
        whole = tl.sum(mean * share, 1)
        rest = tl.sum((mean - whole[:, None]) * share, 1)
        difference = (mean - whole[:, None]) - rest[:, None]
        return Moments(total, whole, rest, tl.sum(squares, 1) + tl.sum(difference * difference * count, 1))
    else:
        zero = total * 0.0
        return Moments(total, zero, zero, tl.sum(squares, 1))
