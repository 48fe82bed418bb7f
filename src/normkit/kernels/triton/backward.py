"""Backward: sums of gradients over regions and over elements with one weight, and the gradient of the input."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from normkit.kernels.triton.activation import derivative
from normkit.kernels.triton.constants import (
    ALONG_CELL,
    ALONG_R0,
    ALONG_R1,
    IDENTITY,
    MASK_NONE,
    WALK_PARTS,
    WALK_TWICE,
    WALK_WHOLE,
)
from normkit.kernels.triton.moments import reciprocal, sqrt
from normkit.kernels.triton.tiles import (
    columns_of,
    elements_of,
    first_weight,
    load_weight,
    part_of,
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
    """Where sums along the axis of the weights are stored: those for the weights, and `half` elements on for the bias.

    A program has one row of them for all its cells, or with PER_CELL each cell has one, from `cell_row` on.
    """

    pointer: tl.tensor
    half: tl.tensor
    row: tl.tensor
    cell_row: tl.tensor


@triton.jit
def standardizer_of(mean, std, columns, index, options: tl.constexpr):
    """Mean and 1 / sqrt(var + eps) of each cell; the mean is 0 where there is none."""
    s = tl.load(std + columns.cell, mask=columns.exists, other=1.0)
    scale = reciprocal(sqrt(s * s + options.eps))
    first = first_weight(columns, index, options.along)
    if mean is not None:
        return Standardizer(tl.load(mean + columns.cell, mask=columns.exists, other=0.0), scale, first)
    else:
        return Standardizer(scale * 0.0, scale, first)


@triton.jit
def gradient_of(
    inputs, columns, standardizer, elements, index, mask_index,
    tile: tl.constexpr, options: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile, before and after the weight is applied."""
    valid = valid_elements(inputs.mask, columns, elements, mask_index, options.mask)
    value = tl.where(valid, tl.load(inputs.x + elements.offset, mask=elements.inside, other=0.0).to(F), 0.0)
    x_hat = tl.where(valid, (value - standardizer.mean[:, None]) * standardizer.scale[:, None], 0.0)
    affine = tl.where(valid, tl.load(inputs.dy + elements.offset, mask=elements.inside, other=0.0).to(F), 0.0)
    if inputs.weight is not None:
        weight = load_weight(inputs.weight, columns, standardizer.first, elements, index, options.along, tile)
    if options.activation != IDENTITY:
        z = x_hat
        if inputs.weight is not None:
            z = z * weight
        if inputs.bias is not None:
            z = z + load_weight(inputs.bias, columns, standardizer.first, elements, index, options.along, tile)
        affine = affine * derivative(z, options.activation)
    if inputs.weight is not None:
        return Gradient(valid, x_hat, affine, affine * weight)
    else:
        return Gradient(valid, x_hat, affine, affine)


@triton.jit
def store_pair(pointer, half, at, present, of_weight, of_bias):
    """Two sums, `half` elements apart."""
    tl.store(pointer + at, of_weight, mask=present)
    tl.store(pointer + half + at, of_bias, mask=present)


@triton.jit
def store_features(sums, of_weight, of_bias, columns, begin, end, size, PIECE: tl.constexpr, PER_CELL: tl.constexpr):
    """Sums for PIECE features of each cell, from `begin` on; without PER_CELL their sum over the cells."""
    feature = begin + tl.arange(0, PIECE)
    if PER_CELL:
        present = columns.exists[:, None] & (feature < end)[None, :]
        at = (sums.cell_row + columns.cell)[:, None] * size + feature[None, :]
        store_pair(sums.pointer, sums.half, at, present, of_weight, of_bias)
    else:
        at = sums.row * size + feature
        store_pair(sums.pointer, sums.half, at, feature < end, tl.sum(of_weight, 0), tl.sum(of_bias, 0))


@triton.jit
def sum_along(values, tile: tl.constexpr, options: tl.constexpr):
    """Sums over the one of r0 and r1 that weights do not vary along; cells have one column wherever they are needed."""
    AXIS: tl.constexpr = 2 if options.features == ALONG_R0 else 1
    return tl.sum(tl.reshape(values, [tile.k1, tile.r0, tile.r1]), AXIS)


@triton.jit
def walked_sums(
    inputs, columns, standardizer, part, sums0, sums1, axes, index, mask_index,
    tile: tl.constexpr, options: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Sums of g * x_hat and g over a part of each column; sums along the axis of the weights are stored on the way.

    g is the gradient before the weight is applied, where one weight belongs to the whole cell, else after.
    """
    along = tl.zeros([tile.k1 * tile.columns, tile.r0 * tile.r1], F)
    plain = tl.zeros([tile.k1 * tile.columns, tile.r0 * tile.r1], F)
    if options.features == ALONG_R1:
        weight1 = tl.zeros([tile.k1 * tile.columns, tile.r0 * tile.r1], F)
        bias1 = tl.zeros([tile.k1 * tile.columns, tile.r0 * tile.r1], F)
    for at0 in range(part.begin0, part.end0, tile.r0):
        if options.features == ALONG_R0:
            weight0 = tl.zeros([tile.k1 * tile.columns, tile.r0 * tile.r1], F)
            bias0 = tl.zeros([tile.k1 * tile.columns, tile.r0 * tile.r1], F)
        for at1 in range(part.begin1, part.end1, tile.r1):
            elements = elements_of(columns, part, at0, at1, axes, tile)
            gradient = gradient_of(inputs, columns, standardizer, elements, index, mask_index, tile, options, F)
            g = gradient.affine if options.features == ALONG_CELL else gradient.inner
            along += g * gradient.x_hat
            plain += g
            if options.features == ALONG_R0:
                weight0 += gradient.affine * gradient.x_hat
                bias0 += gradient.affine
            if options.features == ALONG_R1:
                weight1 += gradient.affine * gradient.x_hat
                bias1 += gradient.affine
        if options.features == ALONG_R0:
            of_weight = sum_along(weight0, tile, options)
            of_bias = sum_along(bias0, tile, options)
            store_features(sums0, of_weight, of_bias, columns, at0, part.end0, axes.r0, tile.r0, options.per_cell)
    if options.features == ALONG_R1:
        of_weight = sum_along(weight1, tile, options)
        of_bias = sum_along(bias1, tile, options)
        store_features(sums1, of_weight, of_bias, columns, part.begin1, part.end1, axes.r1, tile.r1, options.per_cell)
    return tl.sum(along, 1), tl.sum(plain, 1)


@triton.jit(do_not_specialize=["k1", "cells", "all_columns", "half"])
def part_sums(
    dy, x, mask, mean_in, std_in, weight, bias, sums, features,
    k1, cells, all_columns, half, axes, index, mask_index,
    tile: tl.constexpr, options: tl.constexpr,
):  # fmt: skip
    """The sums of each part of a region: ``sums[0..1, part, column]``."""
    F: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    block = tl.program_id(0)
    columns = columns_of(block, k1, axes, tile)
    number = tl.program_id(1)
    standardizer = standardizer_of(mean_in, std_in, columns, index, options)
    blocks = tl.num_programs(0)
    along_r0 = number // axes.parts_r1
    along_r1 = number % axes.parts_r1
    # Parts with the same place along r0 have sums of the same features, if weights vary along r0.
    sums0 = FeatureSums(features, half, along_r1 * blocks + block, along_r1 * cells)
    sums1 = FeatureSums(features, half, along_r0 * blocks + block, along_r0 * cells)
    along, plain = walked_sums(
        Inputs(dy, x, mask, weight, bias), columns, standardizer, part_of(number, axes), sums0, sums1,
        axes, index, mask_index, tile, options, F,
    )  # fmt: skip
    if sums is not None:
        at = number * all_columns + columns.cell * tile.used_columns + columns.place
        store_pair(sums, tl.num_programs(1) * all_columns, at, columns.exists, along, plain)


@triton.jit
def sums_of_parts(sums, columns, all_columns, tile: tl.constexpr):
    """The sums of whole columns from those of their parts."""
    number = tl.num_programs(1)
    part = tl.arange(0, tile.parts)
    at = part[None, :] * all_columns + (columns.cell * tile.used_columns + columns.place)[:, None]
    present = columns.exists[:, None] & (part < number)[None, :]
    along = tl.sum(tl.load(sums + at, mask=present, other=0.0), 1)
    plain = tl.sum(tl.load(sums + number * all_columns + at, mask=present, other=0.0), 1)
    return along, plain


@triton.jit
def means_over_cell(
    along,
    plain,
    weight,
    counts,
    columns,
    standardizer,
    axes,
    tile: tl.constexpr,
    options: tl.constexpr,
    F: tl.constexpr,
):
    """The sums of a cell's columns divided by its number of valid elements, the weight applied where it is not yet."""
    if options.features == ALONG_CELL and weight is not None:
        scaled = tl.load(weight + standardizer.first, mask=columns.exists, other=0.0)
        along = along * scaled
        plain = plain * scaled
    if counts is not None:
        count = tl.maximum(tl.load(counts + columns.cell, mask=columns.exists, other=1.0).to(F), 1.0)
    else:
        count = (tl.zeros([tile.k1 * tile.columns], F) + axes.r0) * axes.r1 * tile.used_columns
    return sum_over_cell(along, tile) / count, sum_over_cell(plain, tile) / count


@triton.jit(do_not_specialize=["k1", "cells", "all_columns", "half", "blocks"])
def input_gradient(
    dy, dsum, x, mask, counts, mean_in, std_in, weight, bias, sums, features, dx,
    k1, cells, all_columns, half, blocks, axes, index, mask_index,
    tile: tl.constexpr, options: tl.constexpr, WALK: tl.constexpr, CENTER: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """dx; and where a region is not cut into parts, the sums for weights on the way.

    FIXED moments do not depend on x; then the sums are for the weights alone. A program takes every
    ``num_programs(0)``-th block, and adds up sums that its blocks have in common.
    """
    F: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    inputs = Inputs(dy, x, mask, weight, bias)
    part = part_of(tl.program_id(1), axes)
    ALONG_AXIS: tl.constexpr = options.features == ALONG_R0 or options.features == ALONG_R1
    IN_COMMON: tl.constexpr = WALK == WALK_WHOLE and ALONG_AXIS and not options.per_cell
    number = axes.r0 if options.features == ALONG_R0 else axes.r1
    ROOM: tl.constexpr = tile.r0 if options.features == ALONG_R0 else tile.r1
    if IN_COMMON:
        all_weight = tl.zeros([ROOM], F)
        all_bias = tl.zeros([ROOM], F)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        columns = columns_of(block, k1, axes, tile)
        standardizer = standardizer_of(mean_in, std_in, columns, index, options)
        if WALK == WALK_WHOLE:
            elements = elements_of(columns, part, part.begin0, part.begin1, axes, tile)
            gradient = gradient_of(inputs, columns, standardizer, elements, index, mask_index, tile, options, F)
            summed = gradient.affine if options.features == ALONG_CELL else gradient.inner
            along = tl.sum(summed * gradient.x_hat, 1)
            plain = tl.sum(summed, 1)
            g = gradient.inner
            if ALONG_AXIS:
                of_weight = sum_along(gradient.affine * gradient.x_hat, tile, options)
                of_bias = sum_along(gradient.affine, tile, options)
                if IN_COMMON:
                    all_weight += tl.sum(of_weight, 0)
                    all_bias += tl.sum(of_bias, 0)
                else:
                    here = FeatureSums(features, half, 0, 0)
                    store_features(here, of_weight, of_bias, columns, 0, number, number, ROOM, True)
        elif WALK == WALK_TWICE:
            here = FeatureSums(features, half, block, 0)
            along, plain = walked_sums(
                inputs, columns, standardizer, part, here, here, axes, index, mask_index, tile, options, F
            )
        elif WALK == WALK_PARTS:
            along, plain = sums_of_parts(sums, columns, all_columns, tile)
        if options.features == ALONG_CELL and WALK != WALK_PARTS:
            at = columns.cell * tile.used_columns + columns.place
            store_pair(features, half, at, columns.exists, along, plain)
        if dx is not None:
            if not FIXED:
                along, plain = means_over_cell(
                    along, plain, weight, counts, columns, standardizer, axes, tile, options, F
                )
            for at0 in range(part.begin0, part.end0, tile.r0):
                for at1 in range(part.begin1, part.end1, tile.r1):
                    if WALK != WALK_WHOLE:
                        elements = elements_of(columns, part, at0, at1, axes, tile)
                        gradient = gradient_of(
                            inputs, columns, standardizer, elements, index, mask_index, tile, options, F
                        )
                        g = gradient.inner
                    if not FIXED:
                        g = g - gradient.x_hat * along[:, None]
                        if CENTER:
                            g = g - plain[:, None]
                    g = tl.where(gradient.valid, g * standardizer.scale[:, None], 0.0)
                    if dsum is not None:
                        g = g + tl.load(dsum + elements.offset, mask=elements.inside, other=0.0).to(F)
                    tl.store(dx + elements.offset, g, mask=elements.inside)
    if IN_COMMON:
        feature = tl.arange(0, ROOM)
        at = tl.program_id(0) * number + feature
        store_pair(features, half, at, feature < number, all_weight, all_bias)


@triton.jit(do_not_specialize=["others", "share", "half"])
def feature_sums(
    dy, x, mask, mean_in, std_in, weight, bias, features, others, share, half,
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
        weights = tl.load(weight + feature, mask=is_feature, other=0.0)
    if bias is not None:
        biases = tl.load(bias + feature, mask=is_feature, other=0.0)
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
        x_hat = tl.where(valid, value * reciprocal(sqrt(s * s + options.eps)), 0.0)
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
    store_pair(features, half, at, is_feature, of_weight, of_bias)
