"""Backward: sums of gradients over regions and over elements with one weight, and the gradient of the input."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from normkit.kernels.triton.activation import derivative
from normkit.kernels.triton.constants import (
    ALONG_CELL,
    ALONG_COLUMN,
    ALONG_R0,
    ALONG_R1,
    IDENTITY,
    MASK_NONE,
    WALK_WHOLE,
)
from normkit.kernels.triton.moments import lanes_of, over_lane, scale_of
from normkit.kernels.triton.tiles import (
    columns_of,
    elements_of,
    first_weight,
    load_weight,
    part_of,
    size_of_r1,
    sum_over_cell,
    valid_elements,
)


class Inputs(NamedTuple):
    """The pointers that a gradient is computed from; None for what a call does not have."""

    dy: tl.tensor
    x: tl.tensor
    mask: tl.tensor
    weight: tl.tensor
    bias: tl.tensor


class Standardizer(NamedTuple):
    """What standardizes the columns of a block, and their first weights."""

    mean: tl.tensor
    scale: tl.tensor
    first: tl.tensor


class Gradient(NamedTuple):
    """The gradients of a tile, and what they go with."""

    valid: tl.tensor
    x_hat: tl.tensor
    affine: tl.tensor
    """The gradient of the output before the activation."""
    inner: tl.tensor
    """The gradient of x_hat: `affine` times the weight."""


class FeatureSums(NamedTuple):
    """Where sums along the axis of the weights are stored, those for weight and bias; None for what is not asked for.

    A program has one row of them for all its cells, or with PER_CELL each cell has one, from `cell_row` on.
    """

    of_weight: tl.tensor
    of_bias: tl.tensor
    row: tl.tensor
    cell_row: tl.tensor


@triton.jit
def standardizer_of(mean, std, columns, index, options: tl.constexpr):
    """Mean and 1 / sqrt(var + eps) of each cell; the mean is 0 where there is none."""
    scale = scale_of(tl.load(std + columns.cell, mask=columns.exists, other=1.0), options)
    first = first_weight(columns, index, options.along)
    if mean is not None:
        return Standardizer(tl.load(mean + columns.cell, mask=columns.exists, other=0.0), scale, first)
    else:
        return Standardizer(scale * 0.0, scale, first)


@triton.jit
def gradient_of(
    inputs, columns, standardizer, part, elements, index, mask_index,
    tile: tl.constexpr, options: tl.constexpr, F: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile, before and after the weight is applied."""
    valid = valid_elements(inputs.mask, columns, elements, mask_index, options.mask)
    value = tl.load(inputs.x + elements.offset, mask=elements.inside, other=0.0, eviction_policy=POLICY).to(F)
    affine = tl.load(inputs.dy + elements.offset, mask=elements.inside, other=0.0, eviction_policy=POLICY).to(F)
    x_hat = (value - standardizer.mean[:, None]) * standardizer.scale[:, None]
    if options.mask != MASK_NONE:
        # Padding may hold anything, and does not reach any sum.
        x_hat = tl.where(valid, x_hat, 0.0)
        affine = tl.where(valid, affine, 0.0)
    if inputs.weight is not None:
        weight = load_weight(inputs.weight, columns, standardizer.first, part, elements, index, options, tile, F)
    if options.activation != IDENTITY:
        z = x_hat
        if inputs.weight is not None:
            z = z * weight
        if inputs.bias is not None:
            z = z + load_weight(inputs.bias, columns, standardizer.first, part, elements, index, options, tile, F)
        affine = affine * derivative(z, options.activation)
    if inputs.weight is not None:
        return Gradient(valid, x_hat, affine, affine * weight)
    else:
        return Gradient(valid, x_hat, affine, affine)


@triton.jit
def store_pair(sums, at, present, of_weight, of_bias, options: tl.constexpr):
    if options.weight:
        tl.store(sums.of_weight + at, of_weight, mask=present)
    if options.bias:
        tl.store(sums.of_bias + at, of_bias, mask=present)


@triton.jit
def store_features(sums, of_weight, of_bias, columns, begin, end, size, PIECE: tl.constexpr, options: tl.constexpr):
    """Sums for PIECE features of each cell, from `begin` on; if not per cell, their sum over the cells."""
    feature = begin + tl.arange(0, PIECE)
    if options.per_cell:
        present = columns.exists[:, None] & (feature < end)[None, :]
        at = (sums.cell_row + columns.cell)[:, None] * size + feature[None, :]
        store_pair(sums, at, present, of_weight, of_bias, options)
    else:
        at = sums.row * size + feature
        store_pair(sums, at, feature < end, tl.sum(of_weight, 0), tl.sum(of_bias, 0), options)


@triton.jit
def sum_along(values, tile: tl.constexpr, options: tl.constexpr):
    """Sums over the one of r0 and r1 that weights do not vary along; cells have one column wherever they are needed."""
    AXIS: tl.constexpr = 2 if options.features == ALONG_R0 else 1
    if AXIS == 1 and tile.r0 == 1:
        return values
    else:
        return tl.sum(tl.reshape(values, [tile.k1, tile.r0, tile.r1]), AXIS)


@triton.jit
def walked_sums(
    inputs, columns, standardizer, part, sums, weight1, bias1, axes, index, mask_index,
    tile: tl.constexpr, options: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Sums of g * x_hat and g over a part of each column, lane by lane.

    g is the gradient before the weight is applied, where one weight belongs to the whole column, else after. Sums along
    r0 for the weights are stored on the way; those along r1 are added to `weight1` and `bias1`, and returned.
    """
    COLUMNS: tl.constexpr = tile.k1 * tile.columns
    OF_COLUMN: tl.constexpr = options.features == ALONG_CELL or options.features == ALONG_COLUMN
    PLAIN: tl.constexpr = options.center or (OF_COLUMN and options.bias)
    along = tl.zeros([COLUMNS, tile.r0 * tile.r1 // tile.group], F)
    plain = tl.zeros([COLUMNS, tile.r0 * tile.r1 // tile.group], F)
    for at0 in range(part.begin0, part.end0, tile.r0):
        if options.features == ALONG_R0:
            weight0 = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
            bias0 = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
        for at1 in range(part.begin1, part.end1, tile.r1):
            elements = elements_of(columns, part, at0, at1, axes, tile)
            gradient = gradient_of(
                inputs, columns, standardizer, part, elements, index, mask_index, tile, options, F, "evict_last"
            )
            g = gradient.affine if OF_COLUMN else gradient.inner
            along += over_lane(lanes_of(g * gradient.x_hat, tile), tile)
            if PLAIN:
                plain += over_lane(lanes_of(g, tile), tile)
            if options.features == ALONG_R0:
                # The only tile along r1 needs no sum of its own.
                weight0 = gradient.affine * gradient.x_hat + (0.0 if tile.r1 == 1 else weight0)
                if options.bias:
                    bias0 = gradient.affine + (0.0 if tile.r1 == 1 else bias0)
            if options.features == ALONG_R1:
                weight1 += gradient.affine * gradient.x_hat
                if options.bias:
                    bias1 += gradient.affine
        if options.features == ALONG_R0:
            of_weight = sum_along(weight0, tile, options)
            of_bias = sum_along(bias0, tile, options)
            store_features(sums, of_weight, of_bias, columns, at0, part.end0, axes.r0, tile.r0, options)
    return tl.sum(along, 1), tl.sum(plain, 1), weight1, bias1


@triton.jit(do_not_specialize=["k1", "all_columns", "blocks"])
def part_sums(
    dy, x, mask, mean_in, std_in, weight, bias, along_sums, plain_sums, of_weight, of_bias,
    k1, all_columns, blocks, axes, index, mask_index,
    tile: tl.constexpr, options: tl.constexpr,
):  # fmt: skip
    """The sums of each part of a region, ``[part, column]``; and for weights along r0 or r1 those of a part.

    A program takes every ``num_programs(0)``-th block, and adds up what these have in common for weights along r1.
    """
    F: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    COLUMNS: tl.constexpr = tile.k1 * tile.columns
    inputs = Inputs(dy, x, mask, weight, bias)
    number = tl.program_id(1)
    part = part_of(number, axes, tile)
    along_r0 = number // axes.parts_r1
    along_r1 = number % axes.parts_r1
    weight1 = tl.zeros([1, 1], F)
    bias1 = tl.zeros([1, 1], F)
    if options.features == ALONG_R1:
        weight1 = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
        bias1 = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        columns = columns_of(block, k1, axes, tile)
        standardizer = standardizer_of(mean_in, std_in, columns, index, options)
        # Parts with the same place along r0 have sums of the same features, if weights vary along r0.
        here = FeatureSums(of_weight, of_bias, along_r1 * blocks + block, along_r1 * all_columns)
        along, plain, weight1, bias1 = walked_sums(
            inputs, columns, standardizer, part, here, weight1, bias1, axes, index, mask_index, tile, options, F
        )
        at = number * all_columns + columns.cell * tile.used_columns + columns.place
        if along_sums is not None:
            tl.store(along_sums + at, along, mask=columns.exists)
        if plain_sums is not None:
            tl.store(plain_sums + at, plain, mask=columns.exists)
        if options.features == ALONG_R1 and options.per_cell:
            here = FeatureSums(of_weight, of_bias, 0, along_r0 * all_columns)
            store_r1(here, weight1, bias1, columns, part, axes, tile, options)
            weight1 = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
            bias1 = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
    if options.features == ALONG_R1 and not options.per_cell:
        row = along_r0 * tl.num_programs(0) + tl.program_id(0)
        here = FeatureSums(of_weight, of_bias, row, 0)
        columns = columns_of(tl.program_id(0), k1, axes, tile)
        store_r1(here, weight1, bias1, columns, part, axes, tile, options)


@triton.jit
def store_r1(sums, weight1, bias1, columns, part, axes, tile: tl.constexpr, options: tl.constexpr):
    """Sums for the weights along r1."""
    of_weight = sum_along(weight1, tile, options)
    of_bias = sum_along(bias1, tile, options)
    size = size_of_r1(axes, tile)
    store_features(sums, of_weight, of_bias, columns, part.begin1, part.end1, size, tile.r1, options)


@triton.jit(do_not_specialize=["cells", "number", "count"])
def merge_sums(
    along_sums, plain_sums, weight, counts, means, of_weight, of_bias, cells, number, count, index,
    options: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The means over each cell, ``means[0..1, cell]``, from the sums ``[part, cell, column]``.

    Where a cell is a weight's only one, also the gradients of weight and bias.
    """
    OF_COLUMN: tl.constexpr = options.features == ALONG_CELL or options.features == ALONG_COLUMN
    F: tl.constexpr = along_sums.dtype.element_ty
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    each = tl.arange(0, PARTS)
    exists = cell < cells
    present = exists[:, None] & (each < number * COLUMNS)[None, :]
    at = (each // COLUMNS * (cells * COLUMNS) + each % COLUMNS)[None, :] + (cell * COLUMNS)[:, None]
    along = tl.load(along_sums + at, mask=present, other=0.0)
    plain = along * 0.0
    if plain_sums is not None:
        plain = tl.load(plain_sums + at, mask=present, other=0.0)
    if of_weight is not None:
        tl.store(of_weight + cell, tl.sum(along, 1), mask=exists)
    if of_bias is not None:
        tl.store(of_bias + cell, tl.sum(plain, 1), mask=exists)
    if means is not None:
        if OF_COLUMN and weight is not None:
            first = (cell // index.cell_div % index.cell_mod * index.cell_step)[:, None]
            if options.features == ALONG_COLUMN:
                first = first + (each % COLUMNS)[None, :]
            scaled = tl.load(weight + first, mask=present, other=0.0).to(F)
            along = along * scaled
            plain = plain * scaled
        if counts is not None:
            values = tl.maximum(tl.load(counts + cell, mask=exists, other=1.0).to(F), 1.0)
        else:
            values = tl.zeros([CELLS], F) + count
        tl.store(means + cell, tl.sum(along, 1) / values, mask=exists)
        if options.center:
            tl.store(means + cells + cell, tl.sum(plain, 1) / values, mask=exists)


@triton.jit
def dx_of(gradient, standardizer, along, plain, options: tl.constexpr, FIXED: tl.constexpr):
    """``scale * (g - mean(g) - x_hat * mean(g * x_hat))``, or with given moments ``scale * g``."""
    g = gradient.inner
    if not FIXED:
        g = g - gradient.x_hat * along[:, None]
        if options.center:
            g = g - plain[:, None]
    g = g * standardizer.scale[:, None]
    if options.mask != MASK_NONE:
        g = tl.where(gradient.valid, g, 0.0)
    return g


@triton.jit
def store_dx(dx, dsum, g, elements, F: tl.constexpr):
    if dsum is not None:
        g = g + tl.load(dsum + elements.offset, mask=elements.inside, other=0.0, eviction_policy="evict_first").to(F)
    tl.store(dx + elements.offset, g, mask=elements.inside)


@triton.jit(do_not_specialize=["k1", "cells"])
def part_gradient(
    dy, dsum, x, mask, means, mean_in, std_in, weight, bias, dx, k1, cells, axes, index, mask_index,
    tile: tl.constexpr, options: tl.constexpr,
):  # fmt: skip
    """dx of a part, from the means over each cell; without means, the moments do not depend on x."""
    F: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    columns = columns_of(tl.program_id(0), k1, axes, tile)
    part = part_of(tl.program_id(1), axes, tile)
    standardizer = standardizer_of(mean_in, std_in, columns, index, options)
    along = standardizer.scale
    plain = standardizer.scale
    if means is not None:
        along = tl.load(means + columns.cell, mask=columns.exists, other=0.0)
        if options.center:
            plain = tl.load(means + cells + columns.cell, mask=columns.exists, other=0.0)
    inputs = Inputs(dy, x, mask, weight, bias)
    for at0 in range(part.begin0, part.end0, tile.r0):
        for at1 in range(part.begin1, part.end1, tile.r1):
            elements = elements_of(columns, part, at0, at1, axes, tile)
            gradient = gradient_of(
                inputs, columns, standardizer, part, elements, index, mask_index, tile, options, F, "evict_first"
            )
            store_dx(dx, dsum, dx_of(gradient, standardizer, along, plain, options, means is None), elements, F)


@triton.jit
def means_over_cell(
    along, plain, weight, counts, columns, standardizer, axes,
    tile: tl.constexpr, options: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """The sums of a cell's columns divided by its number of valid elements, the weight applied where it is not yet."""
    OF_COLUMN: tl.constexpr = options.features == ALONG_CELL or options.features == ALONG_COLUMN
    if OF_COLUMN and weight is not None:
        scaled = tl.load(weight + standardizer.first, mask=columns.exists, other=0.0).to(F)
        along = along * scaled
        plain = plain * scaled
    if counts is not None:
        count = tl.maximum(tl.load(counts + columns.cell, mask=columns.exists, other=1.0).to(F), 1.0)
    else:
        count = (tl.zeros([tile.k1 * tile.columns], F) + axes.r0) * size_of_r1(axes, tile) * tile.used_columns
    return sum_over_cell(along, tile) / count, sum_over_cell(plain, tile) / count


@triton.jit(do_not_specialize=["k1", "blocks"])
def region_gradient(
    dy, dsum, x, mask, counts, mean_in, std_in, weight, bias, of_weight, of_bias, dx,
    k1, blocks, axes, index, mask_index,
    tile: tl.constexpr, options: tl.constexpr, WALK: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """dx of whole regions, and on the way the sums for weights.

    FIXED moments do not depend on x; then the sums are for the weights alone. A program takes every
    ``num_programs(0)``-th block, and adds up sums that its blocks have in common.
    """
    F: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    COLUMNS: tl.constexpr = tile.k1 * tile.columns
    OF_COLUMN: tl.constexpr = options.features == ALONG_CELL or options.features == ALONG_COLUMN
    ALONG_AXIS: tl.constexpr = options.features == ALONG_R0 or options.features == ALONG_R1
    IN_COMMON: tl.constexpr = WALK == WALK_WHOLE and ALONG_AXIS and not options.per_cell
    inputs = Inputs(dy, x, mask, weight, bias)
    part = part_of(tl.program_id(1), axes, tile)
    number = axes.r0 if options.features == ALONG_R0 else size_of_r1(axes, tile)
    ROOM: tl.constexpr = tile.r0 if options.features == ALONG_R0 else tile.r1
    if IN_COMMON:
        all_weight = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
        all_bias = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        columns = columns_of(block, k1, axes, tile)
        standardizer = standardizer_of(mean_in, std_in, columns, index, options)
        if WALK == WALK_WHOLE:
            elements = elements_of(columns, part, part.begin0, part.begin1, axes, tile)
            gradient = gradient_of(
                inputs, columns, standardizer, part, elements, index, mask_index, tile, options, F, "evict_first"
            )
            summed = gradient.affine if OF_COLUMN else gradient.inner
            along = tl.sum(summed * gradient.x_hat, 1)
            plain = along
            if options.center or (OF_COLUMN and options.bias):
                plain = tl.sum(summed, 1)
            if IN_COMMON:
                all_weight += gradient.affine * gradient.x_hat
                if options.bias:
                    all_bias += gradient.affine
            elif ALONG_AXIS:
                here = FeatureSums(of_weight, of_bias, 0, 0)
                own_weight = sum_along(gradient.affine * gradient.x_hat, tile, options)
                own_bias = sum_along(gradient.affine, tile, options)
                store_features(here, own_weight, own_bias, columns, 0, number, number, ROOM, options)
        else:
            here = FeatureSums(of_weight, of_bias, block, 0)
            none = tl.zeros([1, 1], F)
            along, plain, _, _ = walked_sums(
                inputs, columns, standardizer, part, here, none, none, axes, index, mask_index, tile, options, F
            )
        if OF_COLUMN:
            at = columns.cell * tile.used_columns + columns.place
            store_pair(FeatureSums(of_weight, of_bias, 0, 0), at, columns.exists, along, plain, options)
        if dx is not None:
            if not FIXED:
                along, plain = means_over_cell(
                    along, plain, weight, counts, columns, standardizer, axes, tile, options, F
                )
            if WALK == WALK_WHOLE:
                store_dx(dx, dsum, dx_of(gradient, standardizer, along, plain, options, FIXED), elements, F)
            else:
                for at0 in range(part.begin0, part.end0, tile.r0):
                    for at1 in range(part.begin1, part.end1, tile.r1):
                        elements = elements_of(columns, part, at0, at1, axes, tile)
                        gradient = gradient_of(
                            inputs, columns, standardizer, part, elements, index, mask_index, tile, options, F, "evict_first"
                        )
                        g = dx_of(gradient, standardizer, along, plain, options, FIXED)
                        store_dx(dx, dsum, g, elements, F)
    if IN_COMMON:
        row = tl.sum(sum_along(all_weight, tile, options), 0)
        feature = tl.arange(0, ROOM)
        at = tl.program_id(0) * number + feature
        bias_row = row
        if options.bias:
            bias_row = tl.sum(sum_along(all_bias, tile, options), 0)
        store_pair(FeatureSums(of_weight, of_bias, 0, 0), at, feature < number, row, bias_row, options)


@triton.jit(do_not_specialize=["rows"])
def add_up(
    of_weight, of_bias, dweight, dbias, rows, size, shared, own, FEATURES: tl.constexpr, OTHERS: tl.constexpr
):  # fmt: skip
    """The gradients of weight and bias from sums ``[row, feature // own, shared, feature % own]``."""
    pointer = of_weight if of_weight is not None else of_bias
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    is_feature = feature < size
    total_weight = tl.zeros([OTHERS, FEATURES], pointer.dtype.element_ty)
    total_bias = tl.zeros([OTHERS, FEATURES], pointer.dtype.element_ty)
    first = feature // own * (shared * own) + feature % own
    for begin in range(0, rows * shared, OTHERS):
        other = begin + tl.arange(0, OTHERS)
        at = (other // shared).to(tl.int64) * (size * shared) + other % shared * own
        at = at[:, None] + first[None, :]
        present = (other < rows * shared)[:, None] & is_feature[None, :]
        if of_weight is not None:
            total_weight += tl.load(of_weight + at, mask=present, other=0.0)
        if of_bias is not None:
            total_bias += tl.load(of_bias + at, mask=present, other=0.0)
    if of_weight is not None:
        tl.store(dweight + feature, tl.sum(total_weight, 0), mask=is_feature)
    if of_bias is not None:
        tl.store(dbias + feature, tl.sum(total_bias, 0), mask=is_feature)


@triton.jit(do_not_specialize=["others", "share"])
def feature_sums(
    dy, x, mask, mean_in, std_in, weight, bias, part_weight, part_bias, others, share,
    view, mask_index, options: tl.constexpr, FEATURES: tl.constexpr, OTHERS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The gradients of weight and bias alone, for any region.

    Element (a, feature, i) is at ``(a * period + feature) * inner + i``, and its cell follows from that offset. A
    program adds up a share of the others, that is of all (a, i).
    """
    F: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    is_feature = feature < view.period
    of_weight = tl.zeros([FEATURES], F)
    of_bias = tl.zeros([FEATURES], F)
    if weight is not None:
        weights = tl.load(weight + feature, mask=is_feature, other=0.0).to(F)
    if bias is not None:
        biases = tl.load(bias + feature, mask=is_feature, other=0.0).to(F)
    begin = tl.program_id(1)
    if WIDE:
        begin = begin.to(tl.int64)
    begin = begin * share
    end = tl.minimum(begin + share, others)
    for at in range(begin, end, OTHERS):
        other = at + tl.arange(0, OTHERS)
        inside = is_feature[:, None] & (other < end)[None, :]
        outer = (other // view.inner * view.period)[None, :]
        offset = (outer + feature[:, None]) * view.inner + (other % view.inner)[None, :]
        cell = offset // view.outer_size * view.k1 + offset // view.r1 % view.k1
        valid = inside
        if options.mask != MASK_NONE:
            places = mask_index.channels * mask_index.positions
            byte = offset // places * mask_index.positions + offset % mask_index.positions
            valid = inside & (tl.load(mask + byte, mask=inside, other=0) != 0)
        s = tl.load(std_in + cell, mask=inside, other=1.0)
        value = tl.where(valid, tl.load(x + offset, mask=inside, other=0.0).to(F), 0.0)
        if mean_in is not None:
            value = value - tl.load(mean_in + cell, mask=inside, other=0.0)
        x_hat = tl.where(valid, value * scale_of(s, options), 0.0)
        gradient = tl.where(valid, tl.load(dy + offset, mask=inside, other=0.0).to(F), 0.0)
        if options.activation != IDENTITY:
            z = x_hat
            if weight is not None:
                z = z * weights[:, None]
            if bias is not None:
                z = z + biases[:, None]
            gradient = gradient * derivative(z, options.activation)
        of_weight += tl.sum(gradient * x_hat, 1)
        of_bias += tl.sum(gradient, 1)
    at = tl.program_id(1) * view.period + feature
    store_pair(FeatureSums(part_weight, part_bias, 0, 0), at, is_feature, of_weight, of_bias, options)
