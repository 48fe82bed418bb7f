"""Moments of regions: of a tile in registers, of a walk in which every lane keeps its own, and of parts.

A *lane* is a few places of a tile, whose elements one thread holds. A walk gives every lane the same places of each
tile. A lane's elements of one tile are merged with its moments by Chan's formula: one division for a handful of
elements, and nothing that threads would have to exchange. Lanes are merged once, at the end.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from normkit.kernels.triton.code.tiles import sum_over_cell

TINY = tl.constexpr(2.0**-96)
"""Values are multiplied by this where sums of their squares exceed the range of fp32: 3e38 becomes 4e9, 5e14 6e-15."""
TINY_64 = tl.constexpr(2.0**-768)
"""The same for float64."""
VAST = tl.constexpr(1e14)
"""Means and deviations of parts need not be shrunk up to this: squares of a billion elements add up to 1e37."""
VAST_64 = tl.constexpr(1e150)


class Moments(NamedTuple):
    """Of each lane, column or cell."""

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
def quotient(value, divisor):
    """Rounded to nearest, which division is for fp64 alone."""
    if value.dtype == tl.float32:
        return tl.div_rn(value, divisor)
    else:
        return value / divisor


@triton.jit
def scale_of(std, flags: tl.constexpr):
    """``1 / sqrt(std ** 2 + eps)``, also where the square exceeds the range; eps does not count there.

    `std` is a variance if the flags say so. Every kernel takes its scale from the rounded deviation, so that moments
    that are kept for later lead to the same bits as those that are not.
    """
    if flags.variance:
        root = sqrt(std + flags.eps)
    elif flags.eps == 0:
        root = std
    else:
        square = std * std
        root = tl.where(square < float("inf"), sqrt(square + flags.eps), std)
    return quotient(tl.full([], 1.0, std.dtype), root)


# In registers ---------------------------------------------------------------------------------------------


@triton.jit
def tile_moments(value, valid, number, CENTER: tl.constexpr):
    """Moments of each column of a tile, in two passes; `value` is 0 where it is not valid."""
    zero = number * 0.0
    if CENTER:
        mean = quotient(tl.sum(value, 1), tl.maximum(number, 1.0))
        deviation = tl.where(valid, value - mean[:, None], 0.0)
        return Moments(number, mean, zero, tl.sum(deviation * deviation, 1))
    else:
        return Moments(number, zero, zero, tl.sum(value * value, 1))


# Walked, lane by lane -------------------------------------------------------------------------------------


@triton.jit
def lanes_of(values, tile: tl.constexpr):
    """A tile with one more axis, for the elements of each lane."""
    LANES: tl.constexpr = tile.r0 * tile.r1 // tile.group
    if tile.along_r1:
        return tl.reshape(values, [values.shape[0], LANES, tile.group])
    else:
        return tl.reshape(values, [values.shape[0], tile.group, LANES])


@triton.jit
def over_lane(values, tile: tl.constexpr):
    """The sum of each lane's elements."""
    if tile.along_r1:
        return tl.sum(values, 2)
    else:
        return tl.sum(values, 1)


@triton.jit
def of_lane(values, tile: tl.constexpr):
    """A value of each lane, for its elements."""
    if tile.along_r1:
        return values[:, :, None]
    else:
        return values[:, None, :]


@triton.jit
def whole_group(lanes, value, tile: tl.constexpr):
    """Number, mean and deviations of each lane's elements, all of which count."""
    mean = over_lane(value, tile) * (1.0 / tile.group)
    if lanes.number.shape[0] == mean.shape[0]:
        # Made from the mean, so that the compiler lays both out alike.
        return mean * 0.0 + tile.group, mean, value - of_lane(mean, tile)
    else:
        return tl.zeros(lanes.number.shape, mean.dtype) + tile.group, mean, value - of_lane(mean, tile)


@triton.jit
def counted_group(value, valid, tile: tl.constexpr):
    """The same where not all elements count; the others are 0."""
    valid = lanes_of(valid, tile)
    number = over_lane(valid.to(value.dtype), tile)
    mean = quotient(over_lane(value, tile), tl.maximum(number, 1.0))
    return number, mean, tl.where(valid, value - of_lane(mean, tile), 0.0)


@triton.jit
def add_group(lanes, value, valid, full, tile: tl.constexpr, MASKED: tl.constexpr):
    """The moments of lanes with their elements of one more tile, of which each lane's are taken in two passes."""
    value = lanes_of(value, tile)
    if MASKED:
        number, mean, deviation = counted_group(value, valid, tile)
    elif tile.even:
        number, mean, deviation = whole_group(lanes, value, tile)
    else:
        if full:
            number, mean, deviation = whole_group(lanes, value, tile)
        else:
            number, mean, deviation = counted_group(value, valid, tile)
    return merge(lanes, number, mean, over_lane(deviation * deviation, tile))


@triton.jit
def merge(a, number, mean, squares):
    """Chan's formula, for moments and those of a few more elements."""
    total = a.number + number
    share = number / tl.maximum(total, 1.0)
    difference = (mean - a.mean) - a.rest
    step = a.rest + difference * share
    new = a.mean + step
    squares = (a.squares + squares) + difference * difference * (a.number * share)
    return Moments(total, new, step - (new - a.mean), squares)


@triton.jit
def merge_lanes(lanes, CENTER: tl.constexpr):
    """The moments of columns from those of their lanes or parts, along the second axis."""
    squares = tl.sum(lanes.squares, 1)
    number = tl.broadcast_to(tl.sum(lanes.number, 1), squares.shape)
    if CENTER:
        share = lanes.number / tl.maximum(tl.sum(lanes.number, 1), 1.0)[:, None]
        mean = tl.sum(lanes.mean * share, 1)
        difference = (lanes.mean - mean[:, None]) + lanes.rest
        rest = tl.sum(difference * share, 1)
        difference = difference - rest[:, None]
        squares = squares + tl.sum(difference * difference * lanes.number, 1)
        return Moments(number, mean, rest, squares)
    else:
        return Moments(number, squares * 0.0, squares * 0.0, squares)


@triton.jit
def merge_columns(columns, tile: tl.constexpr, CENTER: tl.constexpr):
    """The moments of cells from those of their columns."""
    if tile.columns == 1:
        return columns
    else:
        number = sum_over_cell(columns.number, tile)
        if CENTER:
            share = columns.number / tl.maximum(number, 1.0)
            mean = sum_over_cell(columns.mean * share, tile)
            difference = (columns.mean - mean) + columns.rest
            rest = sum_over_cell(difference * share, tile)
            difference = difference - rest
            squares = sum_over_cell(columns.squares + difference * difference * columns.number, tile)
            return Moments(number, mean, rest, squares)
        else:
            return Moments(number, columns.mean, columns.rest, sum_over_cell(columns.squares, tile))


@triton.jit
def mean_and_deviation(moments, SHRUNK: tl.constexpr):
    """Of the values themselves, if the moments are those of values times `TINY`. Without elements, 0 and 1."""
    std = sqrt(quotient(moments.squares, tl.maximum(moments.number, 1.0)))
    mean = moments.mean + moments.rest
    if SHRUNK:
        mean = mean / tiny(mean.dtype)
        std = std / tiny(mean.dtype)
    return mean, tl.where(moments.number == 0, 1.0, std)


@triton.jit
def where_in_range(mean, std, shrunk_mean, shrunk_std):
    """Mean and deviation where they are finite, else those from values that were shrunk."""
    finite = std < float("inf")
    return tl.where(finite, mean, shrunk_mean), tl.where(finite, std, shrunk_std)


@triton.jit
def tiny(F: tl.constexpr):
    if tl.float64 == F:
        return TINY_64
    else:
        return TINY


@triton.jit
def shrinks(largest):
    """A power of two for each value, by which it has to be multiplied before it is squared."""
    if largest.dtype == tl.float64:
        return tl.where(largest > VAST_64, TINY_64, 1.0)
    else:
        return tl.where(largest > VAST, TINY, 1.0)


@triton.jit
def exceeds_range(std):
    """Whether any deviation is not finite, so that values have to be shrunk before they are squared."""
    return tl.max(tl.where(std < float("inf"), 0, 1), 0) != 0
