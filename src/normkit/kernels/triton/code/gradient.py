"""The gradient of a tile, the sums that a walk makes of it, and where sums for weights are stored."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from normkit.kernels.triton.code.activation import activate, derivative
from normkit.kernels.triton.code.constants import ALONG_CELL, ALONG_COLUMN, ALONG_R0, ALONG_R1, IDENTITY, MASK_NONE
from normkit.kernels.triton.code.moments import lanes_of, over_lane, scale_of
from normkit.kernels.triton.code.tiles import (
    centered,
    elements_of,
    first_weight,
    load_beside,
    load_weight,
    size_of_r1,
    sum_over_cell,
    valid_elements,
)


class Inputs(NamedTuple):
    """The pointers that a gradient is computed from; None for what a call does not have."""

    dy: tl.tensor
    x: tl.tensor
    mask: tl.tensor
    gate: tl.tensor
    skip: tl.tensor
    weight: tl.tensor
    bias: tl.tensor


class Outputs(NamedTuple):
    """The pointers to gradients that lie in memory as dy does; None for what is not asked for."""

    dx: tl.tensor
    dgate: tl.tensor
    dskip: tl.tensor


class Standardizer(NamedTuple):
    """What standardizes the columns of a block, and their first weights."""

    mean: tl.tensor
    scale: tl.tensor
    first: tl.tensor


class Gradient(NamedTuple):
    """The gradients of a tile, and what they go with."""

    valid: tl.tensor
    x_hat: tl.tensor
    x: tl.tensor
    """With a gate that comes first, the elements that it multiplies, as they are in memory; else no more than x_hat."""
    gate: tl.tensor
    """The same of such a gate."""
    affine: tl.tensor
    """The gradient of ``x_hat * weight + bias``."""
    inner: tl.tensor
    """The gradient of x_hat: `affine` times the weight."""


class FeatureSums(NamedTuple):
    """Where sums along the axis of the weights are stored, those for weight and bias; None for what is not asked for.

    A program has one row of them for all its cells. If they are kept per cell, each cell has one, from `cell_row` on.
    """

    of_weight: tl.tensor
    of_bias: tl.tensor
    row: tl.tensor
    cell_row: tl.tensor


@triton.jit
def standardizer_of(mean, std, columns, index, flags: tl.constexpr):
    """Mean and 1 / sqrt(var + eps) of each cell; the mean is 0 where there is none."""
    scale = scale_of(tl.load(std + columns.cell, mask=columns.exists, other=1.0), flags)
    first = first_weight(columns, index, flags.along)
    if mean is not None:
        return Standardizer(tl.load(mean + columns.cell, mask=columns.exists, other=0.0), scale, first)
    else:
        return Standardizer(scale * 0.0, scale, first)


@triton.jit
def gradient_of(
    inputs, outputs, columns, standardizer, part, elements, index, mask_index,
    tile: tl.constexpr, flags: tl.constexpr, F: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile, before and after the weight is applied.

    On the way, the gradients of a gate that comes last and of what is added are stored.
    """
    GATED: tl.constexpr = inputs.gate is not None and not flags.gate_first
    valid = valid_elements(inputs.mask, columns, elements, mask_index, flags.mask)
    x = tl.load(inputs.x + elements.source, mask=elements.inside, other=0.0, eviction_policy=POLICY)
    value = x.to(F)
    if flags.gate_first:
        first_gate = tl.load(inputs.gate + elements.offset, mask=elements.inside, other=0.0, eviction_policy=POLICY)
        value = value * activate(first_gate.to(F), flags.gate)
    affine = tl.load(inputs.dy + elements.offset, mask=elements.inside, other=0.0, eviction_policy=POLICY).to(F)
    x_hat = (value - standardizer.mean[:, None]) * standardizer.scale[:, None]
    if flags.mask == MASK_NONE and not tile.even:
        x_hat = tl.where(elements.inside, x_hat, 0.0)
    if flags.mask != MASK_NONE:
        # Padding may hold anything, and does not reach any sum.
        x_hat = tl.where(valid, x_hat, 0.0)
        affine = tl.where(valid, affine, 0.0)
    if inputs.weight is not None:
        weight = load_weight(inputs.weight, columns, standardizer.first, part, elements, index, flags, tile, F)
        weight = centered(weight, flags)
    if GATED:
        gate = load_beside(inputs.gate, elements, valid, flags.mask, F)
    if flags.activation != IDENTITY or (GATED and outputs.dgate is not None):
        z = x_hat
        if inputs.weight is not None:
            z = z * weight
        if inputs.bias is not None:
            z = z + load_weight(inputs.bias, columns, standardizer.first, part, elements, index, flags, tile, F)
    if flags.activation != IDENTITY:
        q = z
        if GATED:
            q = q * activate(gate, flags.gate)
        if inputs.skip is not None:
            q = q + load_beside(inputs.skip, elements, valid, flags.mask, F)
        affine = affine * derivative(q, flags.activation)
    if outputs.dskip is not None:
        tl.store(outputs.dskip + elements.offset, affine, mask=elements.inside)
    if GATED:
        if outputs.dgate is not None:
            tl.store(outputs.dgate + elements.offset, affine * z * derivative(gate, flags.gate), mask=elements.inside)
        affine = affine * activate(gate, flags.gate)
    inner = affine
    if inputs.weight is not None:
        inner = affine * weight
    if flags.gate_first:
        return Gradient(valid, x_hat, x, first_gate, affine, inner)
    else:
        return Gradient(valid, x_hat, x_hat, x_hat, affine, inner)


@triton.jit
def store_pair(sums, at, present, of_weight, of_bias, flags: tl.constexpr):
    if flags.weight:
        tl.store(sums.of_weight + at, of_weight, mask=present)
    if flags.bias:
        tl.store(sums.of_bias + at, of_bias, mask=present)


@triton.jit
def store_features(sums, of_weight, of_bias, columns, begin, end, size, PIECE: tl.constexpr, flags: tl.constexpr):
    """Sums for PIECE features of each cell, from `begin` on; if not per cell, their sum over the cells."""
    feature = begin + tl.arange(0, PIECE)
    if flags.per_cell:
        present = columns.exists[:, None] & (feature < end)[None, :]
        at = (sums.cell_row + columns.cell)[:, None] * size + feature[None, :]
        store_pair(sums, at, present, of_weight, of_bias, flags)
    else:
        at = sums.row * size + feature
        store_pair(sums, at, feature < end, tl.sum(of_weight, 0), tl.sum(of_bias, 0), flags)


@triton.jit
def sum_along(values, tile: tl.constexpr, flags: tl.constexpr):
    """Sums over the one of r0 and r1 that weights do not vary along; cells have one column wherever they are needed."""
    AXIS: tl.constexpr = 2 if flags.features == ALONG_R0 else 1
    if AXIS == 1 and tile.r0 == 1:
        return values
    else:
        return tl.sum(tl.reshape(values, [tile.k1, tile.r0, tile.r1]), AXIS)


@triton.jit
def walked_sums(
    inputs, columns, standardizer, part, sums, weight1, bias1, axes, index, mask_index,
    tile: tl.constexpr, flags: tl.constexpr, F: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    """Sums of g * x_hat and g over a part of each column, lane by lane.

    g is the gradient before the weight is applied, where one weight belongs to the whole column, else after. Sums along
    r0 for the weights are stored on the way; those along r1 are added to `weight1` and `bias1`, and returned.
    """
    COLUMNS: tl.constexpr = tile.k1 * tile.columns
    OF_COLUMN: tl.constexpr = flags.features == ALONG_CELL or flags.features == ALONG_COLUMN
    PLAIN: tl.constexpr = flags.center or (OF_COLUMN and flags.bias)
    along = tl.zeros([COLUMNS, tile.r0 * tile.r1 // tile.group], F)
    plain = tl.zeros([COLUMNS, tile.r0 * tile.r1 // tile.group], F)
    for at0 in range(part.begin0, part.end0, tile.r0):
        if flags.features == ALONG_R0:
            weight0 = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
            bias0 = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
        for at1 in range(part.begin1, part.end1, tile.r1):
            elements = elements_of(columns, part, at0, at1, axes, tile)
            gradient = gradient_of(
                inputs, Outputs(None, None, None), columns, standardizer, part, elements, index, mask_index,
                tile, flags, F, POLICY,
            )  # fmt: skip
            g = gradient.affine if OF_COLUMN else gradient.inner
            along += over_lane(lanes_of(g * gradient.x_hat, tile), tile)
            if PLAIN:
                plain += over_lane(lanes_of(g, tile), tile)
            if flags.features == ALONG_R0:
                # The only tile along r1 needs no sum of its own.
                weight0 = gradient.affine * gradient.x_hat + (0.0 if tile.r1 == 1 else weight0)
                if flags.bias:
                    bias0 = gradient.affine + (0.0 if tile.r1 == 1 else bias0)
            if flags.features == ALONG_R1:
                weight1 += gradient.affine * gradient.x_hat
                if flags.bias:
                    bias1 += gradient.affine
        if flags.features == ALONG_R0:
            of_weight = sum_along(weight0, tile, flags)
            of_bias = sum_along(bias0, tile, flags)
            store_features(sums, of_weight, of_bias, columns, at0, part.end0, axes.r0, tile.r0, flags)
    return tl.sum(along, 1), tl.sum(plain, 1), weight1, bias1


@triton.jit
def store_r1(sums, weight1, bias1, columns, part, axes, tile: tl.constexpr, flags: tl.constexpr):
    """Sums for the weights along r1."""
    of_weight = sum_along(weight1, tile, flags)
    of_bias = sum_along(bias1, tile, flags)
    size = size_of_r1(axes, tile)
    store_features(sums, of_weight, of_bias, columns, part.begin1, part.end1, size, tile.r1, flags)


@triton.jit
def store_in_common(
    sums, all_weight, all_bias, number, ROOM: tl.constexpr, tile: tl.constexpr, flags: tl.constexpr
):  # fmt: skip
    """A program's row of sums for weights, which it has added up over all its blocks, place by place."""
    of_weight = tl.sum(sum_along(all_weight, tile, flags), 0)
    of_bias = of_weight
    if flags.bias:
        of_bias = tl.sum(sum_along(all_bias, tile, flags), 0)
    feature = tl.arange(0, ROOM)
    store_pair(sums, sums.row * number + feature, feature < number, of_weight, of_bias, flags)


@triton.jit
def dx_of(gradient, standardizer, along, plain, flags: tl.constexpr, FIXED: tl.constexpr):
    """``scale * (g - mean(g) - x_hat * mean(g * x_hat))``, or with given moments ``scale * g``."""
    g = gradient.inner
    if not FIXED:
        g = g - gradient.x_hat * along[:, None]
        if flags.center:
            g = g - plain[:, None]
    g = g * standardizer.scale[:, None]
    if flags.mask != MASK_NONE:
        g = tl.where(gradient.valid, g, 0.0)
    return g


@triton.jit
def store_dx(outputs, dsum, gradient, g, elements, flags: tl.constexpr, F: tl.constexpr):
    """Store dx, and the gradient of a gate that comes first, from the gradient of what was normalized."""
    if dsum is not None:
        g = g + tl.load(dsum + elements.offset, mask=elements.inside, other=0.0, eviction_policy="evict_first").to(F)
    if flags.gate_first:
        x = gradient.x.to(F)
        gate = gradient.gate.to(F)
        if flags.mask != MASK_NONE:
            x = tl.where(gradient.valid, x, 0.0)
            gate = tl.where(gradient.valid, gate, 0.0)
        if outputs.dgate is not None:
            tl.store(outputs.dgate + elements.offset, g * x * derivative(gate, flags.gate), mask=elements.inside)
        g = g * activate(gate, flags.gate)
    if outputs.dx is not None:
        tl.store(outputs.dx + elements.offset, g, mask=elements.inside)


@triton.jit
def walk_dx(
    inputs, outputs, dsum, columns, standardizer, part, along, plain, axes, index, mask_index,
    tile: tl.constexpr, flags: tl.constexpr, FIXED: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """dx of a part and what is stored with it, from the means of g * x_hat and of g over each column's cell."""
    for at0 in range(part.begin0, part.end0, tile.r0):
        for at1 in range(part.begin1, part.end1, tile.r1):
            elements = elements_of(columns, part, at0, at1, axes, tile)
            gradient = gradient_of(
                inputs, outputs, columns, standardizer, part, elements, index, mask_index,
                tile, flags, F, "evict_first",
            )  # fmt: skip
            g = dx_of(gradient, standardizer, along, plain, flags, FIXED)
            store_dx(outputs, dsum, gradient, g, elements, flags, F)


@triton.jit
def means_over_cell(
    along, plain, weight, counts, columns, standardizer, axes,
    tile: tl.constexpr, flags: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """The sums of a cell's columns divided by its number of valid elements, the weight applied where it is not yet."""
    OF_COLUMN: tl.constexpr = flags.features == ALONG_CELL or flags.features == ALONG_COLUMN
    if OF_COLUMN and weight is not None:
        scaled = centered(tl.load(weight + standardizer.first, mask=columns.exists, other=0.0).to(F), flags)
        along = along * scaled
        plain = plain * scaled
    if counts is not None:
        count = tl.maximum(tl.load(counts + columns.cell, mask=columns.exists, other=1.0).to(F), 1.0)
    else:
        count = (tl.zeros([tile.k1 * tile.columns], F) + axes.r0) * size_of_r1(axes, tile) * tile.used_columns
    return sum_over_cell(along, tile) / count, sum_over_cell(plain, tile) / count
