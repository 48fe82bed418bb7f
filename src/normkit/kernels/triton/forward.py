"""Forward: moments of the parts of a region, normalization, 8-bit rows, running statistics."""

from __future__ import annotations

import triton
import triton.language as tl

from normkit.kernels.triton.activation import activate
from normkit.kernels.triton.constants import MASK_NONE, WALK_GIVEN, WALK_PARTS, WALK_TWICE, WALK_WHOLE
from normkit.kernels.triton.moments import (
    Moments,
    merge,
    merge_columns,
    merge_parts,
    reciprocal,
    sqrt,
    store_part,
    tile_moments,
)
from normkit.kernels.triton.tiles import (
    columns_of,
    elements_of,
    first_weight,
    load_weight,
    part_of,
    valid_elements,
)


@triton.jit
def load_input(x, residual, total, elements, valid, F: tl.constexpr):
    """The elements of a tile with the residual added, 0 where not valid; `total`, if there is one, keeps the sum."""
    value = tl.load(x + elements.offset, mask=elements.inside, other=0.0)
    if residual is not None:
        added = tl.load(residual + elements.offset, mask=elements.inside, other=0.0)
        value = (value.to(F) + added.to(F)).to(value.dtype)
        if total is not None:
            tl.store(total + elements.offset, value, mask=elements.inside)
    return tl.where(valid, value.to(F), 0.0)


@triton.jit
def walked_moments(
    x, residual, total, mask, columns, part, axes, mask_index,
    tile: tl.constexpr, CENTER: tl.constexpr, MASK: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Moments of a part of each cell, a tile at a time."""
    zero = tl.zeros([tile.k1 * tile.columns], F)
    moments = Moments(zero, zero, zero, zero)
    for at0 in range(part.begin0, part.end0, tile.r0):
        for at1 in range(part.begin1, part.end1, tile.r1):
            elements = elements_of(columns, part, at0, at1, axes, tile)
            valid = valid_elements(mask, columns, elements, mask_index, MASK)
            value = load_input(x, residual, total, elements, valid, F)
            count = tl.sum(valid.to(F), 1)
            moments = merge(moments, tile_moments(value, valid, count, CENTER), CENTER)
    return merge_columns(moments, tile, CENTER)


@triton.jit(do_not_specialize=["k1", "cells"])
def part_moments(
    x, residual, total, mask, parts, k1, cells, axes, mask_index,
    tile: tl.constexpr, CENTER: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """The moments of each part."""
    F: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    columns = columns_of(tl.program_id(0), k1, axes, tile)
    part = part_of(tl.program_id(1), axes)
    moments = walked_moments(x, residual, total, mask, columns, part, axes, mask_index, tile, CENTER, MASK, F)
    store_part(parts, tl.program_id(1), moments, columns, cells)


@triton.jit(do_not_specialize=["k1", "cells"])
def normalize(
    x, residual, total, mask, mean_in, std_in, weight, bias, parts, y, mean_out, std_out,
    k1, cells, axes, index, mask_index, tile: tl.constexpr, options: tl.constexpr,
):  # fmt: skip
    """y, and the moments where they are not given."""
    F: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    columns = columns_of(tl.program_id(0), k1, axes, tile)
    first = first_weight(columns, index, options.along)
    part = part_of(tl.program_id(1), axes)
    if options.walk == WALK_WHOLE:
        elements = elements_of(columns, part, part.begin0, part.begin1, axes, tile)
        valid = valid_elements(mask, columns, elements, mask_index, options.mask)
        value = load_input(x, residual, total, elements, valid, F)
        moments = tile_moments(value, valid, tl.sum(valid.to(F), 1), options.center)
        moments = merge_columns(moments, tile, options.center)
    elif options.walk == WALK_TWICE:
        moments = walked_moments(
            x, residual, total, mask, columns, part, axes, mask_index, tile, options.center, options.mask, F
        )
    elif options.walk == WALK_PARTS:
        moments = merge_parts(parts, columns, cells, tile, options.center)
    if options.walk == WALK_GIVEN:
        std = tl.load(std_in + columns.cell, mask=columns.exists, other=1.0)
        var = std * std
        mean = tl.load(mean_in + columns.cell, mask=columns.exists, other=0.0)
        rest = mean * 0.0
    else:
        mean = moments.mean
        rest = moments.rest
        # The deviation of a region of padding alone counts as 1.
        var = tl.where(moments.number == 0, 1.0, moments.squares / tl.maximum(moments.number, 1.0))
        if std_out is not None:
            if tl.program_id(1) == 0:
                lead = columns.exists & (columns.place == 0)
                tl.store(std_out + columns.cell, sqrt(var), mask=lead)
                if options.center:
                    tl.store(mean_out + columns.cell, mean + rest, mask=lead)
    scale = reciprocal(sqrt(var + options.eps))
    for at0 in range(part.begin0, part.end0, tile.r0):
        for at1 in range(part.begin1, part.end1, tile.r1):
            if options.walk != WALK_WHOLE:
                elements = elements_of(columns, part, at0, at1, axes, tile)
                valid = valid_elements(mask, columns, elements, mask_index, options.mask)
                kept = total if options.walk == WALK_GIVEN else None
                value = load_input(x, residual, kept, elements, valid, F)
            if options.center:
                z = ((value - mean[:, None]) - rest[:, None]) * scale[:, None]
            else:
                z = value * scale[:, None]
            if weight is not None:
                z = z * load_weight(weight, columns, first, elements, index, options.along, tile)
            if bias is not None:
                z = z + load_weight(bias, columns, first, elements, index, options.along, tile)
            z = activate(z, options.activation)
            if options.mask != MASK_NONE:
                z = tl.where(valid, z, 0.0)
            tl.store(y + elements.offset, z, mask=elements.inside)


@triton.jit(do_not_specialize=["rows"])
def quantize(
    x, weight, bias, given, y, scale_out, rows, length,
    EPS: tl.constexpr, CENTER: tl.constexpr, LARGEST: tl.constexpr,
    ROWS: tl.constexpr, LENGTH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Normalized rows divided by a scale, which is given or brings each row's largest value to LARGEST."""
    block = tl.program_id(0)
    if WIDE:
        block = block.to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    place = tl.arange(0, LENGTH)
    inside = (row < rows)[:, None] & (place < length)[None, :]
    offset = row[:, None] * length + place[None, :]
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    moments = tile_moments(value, inside, tl.zeros([ROWS], tl.float32) + length, CENTER)
    z = (value - moments.mean[:, None]) - moments.rest[:, None]
    z = z * reciprocal(sqrt(moments.squares / length + EPS))[:, None]
    if weight is not None:
        z = z * tl.load(weight + place, mask=place < length, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        z = z + tl.load(bias + place, mask=place < length, other=0.0).to(tl.float32)[None, :]
    if given is not None:
        z = z / tl.load(given)
    else:
        largest = tl.max(tl.where(inside, tl.abs(z), 0.0), 1)
        scale = tl.where(largest > 0, largest / LARGEST, 1.0)
        tl.store(scale_out + row, scale, mask=row < rows)
        z = z / scale[:, None]
    z = tl.clamp(z, -LARGEST, LARGEST).to(y.dtype.element_ty, fp_downcast_rounding="rtne")
    tl.store(y + offset, z, mask=inside)


@triton.jit
def update_running(running_mean, running_var, mean, std, channels, samples, unbias, momentum, BLOCK: tl.constexpr):
    """Running statistics move towards a batch's, averaged over its samples where each has its own.

    A channel keeps its statistics where the new ones would not be finite.
    """
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = channel < channels
    new_mean = tl.zeros([BLOCK], mean.dtype.element_ty)
    new_var = tl.zeros([BLOCK], mean.dtype.element_ty)
    for sample in range(0, samples):
        s = tl.load(std + sample * channels + channel, mask=exists, other=0.0)
        new_mean += tl.load(mean + sample * channels + channel, mask=exists, other=0.0)
        new_var += s * s * unbias
    old_mean = tl.load(running_mean + channel, mask=exists, other=0.0)
    old_var = tl.load(running_var + channel, mask=exists, other=0.0)
    new_mean = old_mean + (new_mean / samples - old_mean) * momentum
    new_var = old_var + (new_var / samples - old_var) * momentum
    finite = (tl.abs(new_mean) < float("inf")) & (tl.abs(new_var) < float("inf"))
    tl.store(running_mean + channel, new_mean, mask=exists & finite)
    tl.store(running_var + channel, new_var, mask=exists & finite)
