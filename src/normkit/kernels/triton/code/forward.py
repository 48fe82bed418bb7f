"""Forward: moments of regions and of their parts, normalization, 8-bit rows, running statistics."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from normkit.kernels.triton.code.activation import activate
from normkit.kernels.triton.code.constants import (
    ALONG_CELL,
    ALONG_COLUMN,
    MASK_NONE,
    WALK_GIVEN,
    WALK_WHOLE,
)
from normkit.kernels.triton.code.moments import (
    TINY,
    Moments,
    add_group,
    exceeds_range,
    lanes_of,
    mean_and_deviation,
    merge_columns,
    merge_lanes,
    over_lane,
    scale_of,
    shrinks,
    tile_moments,
    tiny,
    where_in_range,
)
from normkit.kernels.triton.code.tiles import (
    centered,
    elements_of,
    first_weight,
    load_beside,
    load_weight,
    place_of_columns,
    place_of_parts,
    task_of_program,
    valid_elements,
)


class Source(NamedTuple):
    """The pointers that the input is computed from; None for what a call does not have."""

    x: tl.tensor
    residual: tl.tensor
    mask: tl.tensor
    gate: tl.tensor
    """A gate that comes first."""


@triton.jit
def load_input(
    source, total, elements, valid, MASK: tl.constexpr, GATE: tl.constexpr, F: tl.constexpr, POLICY: tl.constexpr
):  # fmt: skip
    """The elements of a tile that are normalized, 0 where not valid; `total`, if there is one, keeps the sum."""
    value = tl.load(source.x + elements.source, mask=elements.inside, other=0.0, eviction_policy=POLICY)
    if source.residual is not None:
        added = tl.load(source.residual + elements.offset, mask=elements.inside, other=0.0, eviction_policy=POLICY)
        value = (value.to(F) + added.to(F)).to(value.dtype)
        if total is not None:
            tl.store(total + elements.offset, value, mask=elements.inside)
    value = value.to(F)
    if source.gate is not None:
        gate = tl.load(source.gate + elements.offset, mask=elements.inside, other=0.0, eviction_policy=POLICY)
        value = value * activate(gate.to(F), GATE)
    if MASK == MASK_NONE:
        return value
    else:
        return tl.where(valid, value, 0.0)


@triton.jit
def walked_moments(
    source, total, columns, part, axes, mask_index,
    tile: tl.constexpr, CENTER: tl.constexpr, MASK: tl.constexpr, GATE: tl.constexpr, SHRUNK: tl.constexpr,
    F: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    """Moments of a part of each cell, or of each column of a flat tile."""
    MASKED: tl.constexpr = MASK != MASK_NONE
    COLUMNS: tl.constexpr = tile.k1 * tile.columns
    LANES: tl.constexpr = tile.r0 * tile.r1 // tile.group
    zero = tl.zeros([COLUMNS, LANES], F)
    # One number of elements serves all columns, if every lane has as many.
    ALIKE: tl.constexpr = tile.flat and tile.even and not MASKED
    lanes = Moments(tl.zeros([1 if ALIKE else COLUMNS, LANES], F), zero, zero, zero)
    for at0 in range(part.begin0, part.end0, tile.r0):
        for at1 in range(part.begin1, part.end1, tile.r1):
            elements = elements_of(columns, part, at0, at1, axes, tile)
            valid = valid_elements(source.mask, columns, elements, mask_index, MASK)
            value = load_input(source, total, elements, valid, MASK, GATE, F, POLICY)
            if SHRUNK:
                value = value * tiny(F)
            if CENTER:
                lanes = add_group(lanes, value, valid, elements.full, tile, MASKED)
            else:
                number = lanes.number
                if MASKED:
                    number += over_lane(lanes_of(valid.to(F), tile), tile)
                squares = lanes.squares + over_lane(lanes_of(value * value, tile), tile)
                lanes = Moments(number, zero, zero, squares)
    moments = merge_lanes(lanes, CENTER)
    number = moments.number
    if not (CENTER or MASKED):
        number = number + ((part.end0 - part.begin0) * (part.end1 - part.begin1)).to(F)
    # Columns that only fill up a power of two have no elements.
    moments = Moments(tl.where(columns.exists, number, 0.0), moments.mean, moments.rest, moments.squares)
    return merge_columns(moments, tile, CENTER)


@triton.jit(do_not_specialize=["k1", "all_columns"])
def part_moments(
    x, residual, total, mask, gate, parts, k1, all_columns, axes, mask_index,
    tile: tl.constexpr, CENTER: tl.constexpr, MASK: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Number, mean and deviation of each part: ``parts[0..2, part, column]``, a column for each cell unless flat."""
    F: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    columns, part, number = task_of_program(k1, axes, tile)
    source = Source(x, residual, mask, gate)
    moments = walked_moments(source, total, columns, part, axes, mask_index, tile, CENTER, MASK, GATE, False, F, "")
    mean, std = mean_and_deviation(moments, False)
    if x.dtype.element_ty != tl.float16:
        if exceeds_range(std):
            moments = walked_moments(
                source, None, columns, part, axes, mask_index, tile, CENTER, MASK, GATE, True, F, ""
            )
            shrunk_mean, shrunk_std = mean_and_deviation(moments, True)
            mean, std = where_in_range(mean, std, shrunk_mean, shrunk_std)
    at = number * all_columns + place_of_columns(columns, tile)
    step = axes.parts * all_columns
    tl.store(parts + at, moments.number, mask=columns.exists)
    tl.store(parts + step + at, mean, mask=columns.exists)
    tl.store(parts + 2 * step + at, std, mask=columns.exists)


@triton.jit(do_not_specialize=["cells", "number"])
def merge_moments(
    parts, mean_out, std_out, cells, number,
    CENTER: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Mean and deviation of each cell from those of its parts, ``parts[0..2, part, cell, column]``."""
    cell, at, present = place_of_parts(cells, number, COLUMNS, CELLS, PARTS)
    step = number * cells * COLUMNS
    count = tl.load(parts + at, mask=present, other=0.0)
    mean = tl.load(parts + step + at, mask=present, other=0.0)
    std = tl.load(parts + 2 * step + at, mask=present, other=0.0)
    # A power of two that keeps all squares within the range.
    largest = tl.max(tl.maximum(tl.abs(mean), std), 1)
    shrink = shrinks(largest)
    mean = mean * shrink[:, None]
    std = std * shrink[:, None]
    merged = merge_lanes(Moments(count, mean, mean * 0.0, std * std * count), CENTER)
    mean_of_cell, std_of_cell = mean_and_deviation(merged, False)
    tl.store(std_out + cell, std_of_cell / shrink, mask=cell < cells)
    if CENTER:
        tl.store(mean_out + cell, mean_of_cell / shrink, mask=cell < cells)


@triton.jit
def region_moments(
    value, valid, source, total, columns, part, axes, mask_index,
    tile: tl.constexpr, flags: tl.constexpr, SHRUNK: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Mean and deviation of whole regions, from the tile in registers or from a walk."""
    if flags.walk == WALK_WHOLE:
        if SHRUNK:
            value = value * tiny(F)
        if flags.mask == MASK_NONE:
            size = (part.end0 * part.end1).to(F)
            number = tl.where(columns.exists, size, 0.0)
        else:
            number = tl.sum(valid.to(F), 1)
        moments = tile_moments(value, valid, number, flags.center)
        moments = merge_columns(moments, tile, flags.center)
    else:
        moments = walked_moments(
            source, total, columns, part, axes, mask_index,
            tile, flags.center, flags.mask, flags.gate, SHRUNK, F, "evict_last",
        )  # fmt: skip
    return mean_and_deviation(moments, SHRUNK)


@triton.jit
def weighted(z, weight, bias, dtype: tl.constexpr, flags: tl.constexpr, F: tl.constexpr):
    """``z * weight + bias``, or what would be in memory if each step were an operation of its own in x's dtype."""
    if flags.cast_first:
        z = z.to(dtype).to(F)
    if weight is not None:
        if flags.cast_first:
            z = (z * weight.to(dtype).to(F)).to(dtype).to(F)
        else:
            z = z * weight
    if bias is not None:
        if flags.cast_first:
            z = (z + bias.to(dtype).to(F)).to(dtype).to(F)
        else:
            z = z + bias
    return z


@triton.jit(do_not_specialize=["k1"])
def normalize(
    x, residual, total, mask, gate, skip, mean_in, std_in, weight, bias, y, mean_out, std_out,
    k1, axes, index, mask_index, tile: tl.constexpr, flags: tl.constexpr,
):  # fmt: skip
    """y, and the moments where they are not given. A program has whole regions, or a part if moments are given."""
    F: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    GIVEN: tl.constexpr = flags.walk == WALK_GIVEN
    GATED: tl.constexpr = gate is not None and not flags.gate_first
    source = Source(x, residual, mask, gate if flags.gate_first else None)
    columns, part, _ = task_of_program(k1, axes, tile)
    first = first_weight(columns, index, flags.along)
    if GIVEN:
        std = tl.load(std_in + columns.cell, mask=columns.exists, other=1.0).to(F)
        if flags.center:
            mean = tl.load(mean_in + columns.cell, mask=columns.exists, other=0.0).to(F)
        else:
            mean = std * 0.0
    else:
        held = 0.0
        held_valid = 0.0
        if flags.walk == WALK_WHOLE:
            elements = elements_of(columns, part, part.begin0, part.begin1, axes, tile)
            held_valid = valid_elements(mask, columns, elements, mask_index, flags.mask)
            held = load_input(source, total, elements, held_valid, flags.mask, flags.gate, F, "evict_first")
        mean, std = region_moments(
            held, held_valid, source, total, columns, part, axes, mask_index, tile, flags, False, F
        )
        if x.dtype.element_ty != tl.float16:
            if exceeds_range(std):
                shrunk_mean, shrunk_std = region_moments(
                    held, held_valid, source, None, columns, part, axes, mask_index, tile, flags, True, F
                )
                mean, std = where_in_range(mean, std, shrunk_mean, shrunk_std)
        if std_out is not None:
            lead = columns.exists & (columns.place == 0)
            tl.store(std_out + columns.cell, std, mask=lead)
            if flags.center:
                tl.store(mean_out + columns.cell, mean, mask=lead)
    scale = scale_of(std, flags)
    OF_COLUMN: tl.constexpr = flags.along == ALONG_CELL or flags.along == ALONG_COLUMN
    if OF_COLUMN:
        if weight is not None:
            column_weight = centered(tl.load(weight + first, mask=columns.exists, other=0.0).to(F), flags)
        if bias is not None:
            column_bias = tl.load(bias + first, mask=columns.exists, other=0.0).to(F)
    for at0 in range(part.begin0, part.end0, tile.r0):
        for at1 in range(part.begin1, part.end1, tile.r1):
            if flags.walk == WALK_WHOLE:
                z = held
                valid = held_valid
            else:
                elements = elements_of(columns, part, at0, at1, axes, tile)
                valid = valid_elements(mask, columns, elements, mask_index, flags.mask)
                # A first walk has stored the sum.
                kept = total if GIVEN else None
                z = load_input(source, kept, elements, valid, flags.mask, flags.gate, F, "evict_first")
            if flags.center:
                z = z - mean[:, None]
            z = z * scale[:, None]
            factor = None
            added = None
            if weight is not None:
                if OF_COLUMN:
                    factor = column_weight[:, None]
                else:
                    loaded = load_weight(weight, columns, first, part, elements, index, flags, tile, F)
                    factor = centered(loaded, flags)
            if bias is not None:
                if OF_COLUMN:
                    added = column_bias[:, None]
                else:
                    added = load_weight(bias, columns, first, part, elements, index, flags, tile, F)
            z = weighted(z, factor, added, y.dtype.element_ty, flags, F)
            if GATED:
                z = z * activate(load_beside(gate, elements, valid, flags.mask, F), flags.gate)
            if skip is not None:
                z = z + load_beside(skip, elements, valid, flags.mask, F)
            z = activate(z, flags.activation)
            if flags.mask != MASK_NONE:
                z = tl.where(valid, z, 0.0)
            tl.store(y + elements.offset, z, mask=elements.inside)


@triton.jit(do_not_specialize=["rows"])
def quantize(
    x, weight, bias, given, y, scale_out, rows, length,
    flags: tl.constexpr, LARGEST: tl.constexpr,
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
    value = tl.load(x + offset, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    number = tl.zeros([ROWS], tl.float32) + length
    mean, std = mean_and_deviation(tile_moments(value, inside, number, flags.center), False)
    if exceeds_range(std):
        shrunk = tile_moments(value * TINY, inside, number, flags.center)
        shrunk_mean, shrunk_std = mean_and_deviation(shrunk, True)
        mean = tl.where(std < float("inf"), mean, shrunk_mean)
        std = tl.where(std < float("inf"), std, shrunk_std)
    z = (value - mean[:, None]) * scale_of(std, flags)[:, None]
    if weight is not None:
        z = z * centered(tl.load(weight + place, mask=place < length, other=0.0).to(tl.float32), flags)[None, :]
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


@triton.jit(do_not_specialize=["count", "samples", "momentum", "momentum_rest"])
def update_running(
    running_mean, running_var, mean, std, channels, samples, count, momentum, momentum_rest, BLOCK: tl.constexpr
):
    """Running statistics move towards a batch's, averaged over its samples where each has its own.

    A channel keeps its statistics where the new ones would not be finite. The momentum comes in two pieces, because
    Triton passes a number in fp32.
    """
    WIDE: tl.constexpr = mean.dtype.element_ty == tl.float64 or running_mean.dtype.element_ty == tl.float64
    F: tl.constexpr = tl.float64 if WIDE else tl.float32
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = channel < channels
    zero = tl.zeros([BLOCK], F)
    share = (zero + momentum) + momentum_rest
    values = zero + count
    unbias = values / (values - 1.0)
    new_mean = zero
    new_var = zero
    for sample in range(0, samples):
        s = tl.load(std + sample * channels + channel, mask=exists, other=0.0)
        new_mean += tl.load(mean + sample * channels + channel, mask=exists, other=0.0)
        new_var += s * s * unbias
    old_mean = tl.load(running_mean + channel, mask=exists, other=0.0)
    old_var = tl.load(running_var + channel, mask=exists, other=0.0)
    new_mean = old_mean + (new_mean / samples - old_mean) * share
    new_var = old_var + (new_var / samples - old_var) * share
    finite = (tl.abs(new_mean) < float("inf")) & (tl.abs(new_var) < float("inf"))
    tl.store(running_mean + channel, new_mean, mask=exists & finite)
    tl.store(running_var + channel, new_var, mask=exists & finite)
