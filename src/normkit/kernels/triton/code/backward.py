"""Backward: sums of gradients over regions and their parts, and the gradient of the input."""

from __future__ import annotations

import triton
import triton.language as tl

from normkit.kernels.triton.code.constants import ALONG_CELL, ALONG_COLUMN, ALONG_R0, ALONG_R1, WALK_WHOLE
from normkit.kernels.triton.code.gradient import (
    FeatureSums,
    Inputs,
    Outputs,
    dx_of,
    gradient_of,
    means_over_cell,
    standardizer_of,
    store_dx,
    store_features,
    store_in_common,
    store_pair,
    store_r1,
    sum_along,
    walk_dx,
    walked_sums,
)
from normkit.kernels.triton.code.tiles import (
    blocks_of_program,
    centered,
    columns_of,
    elements_of,
    part_of,
    place_of_columns,
    place_of_parts,
    place_of_program,
    size_of_r1,
    task_of_program,
)


@triton.jit(do_not_specialize=["k1", "all_columns", "blocks"])
def part_sums(
    dy, x, mask, gate, skip, mean_in, std_in, weight, bias, along_sums, plain_sums, of_weight, of_bias,
    k1, all_columns, blocks, axes, index, mask_index,
    tile: tl.constexpr, flags: tl.constexpr,
):  # fmt: skip
    """The sums of each part of a region, ``[part, column]``; and for weights along r0 or r1 those of a part.

    The programs of a part take turns with its blocks, or with those of one index of k0. Each adds up what its blocks
    have in common for weights along r1.
    """
    F: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    COLUMNS: tl.constexpr = tile.k1 * tile.columns
    inputs = Inputs(dy, x, mask, gate, skip, weight, bias)
    first, number, programs = place_of_program(axes)
    begin, end, step = blocks_of_program(first, programs, blocks, k1, index.cell_mod, tile, flags.sets)
    part = part_of(number, axes, tile)
    along_r0 = number // axes.parts_r1
    along_r1 = number % axes.parts_r1
    weight1 = tl.zeros([1, 1], F)
    bias1 = tl.zeros([1, 1], F)
    if flags.features == ALONG_R1:
        weight1 = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
        bias1 = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
    for block in range(begin, end, step):
        columns = columns_of(block, k1, axes, tile)
        standardizer = standardizer_of(mean_in, std_in, columns, index, flags)
        # Parts with the same place along r0 have sums of the same features, if weights vary along r0.
        here = FeatureSums(of_weight, of_bias, along_r1 * blocks + block, along_r1 * all_columns)
        along, plain, weight1, bias1 = walked_sums(
            inputs, columns, standardizer, part, here, weight1, bias1, axes, index, mask_index, tile, flags, F, ""
        )
        at = number * all_columns + place_of_columns(columns, tile)
        if along_sums is not None:
            tl.store(along_sums + at, along, mask=columns.exists)
        if plain_sums is not None:
            tl.store(plain_sums + at, plain, mask=columns.exists)
        if flags.features == ALONG_R1 and flags.per_cell:
            here = FeatureSums(of_weight, of_bias, 0, along_r0 * all_columns)
            store_r1(here, weight1, bias1, columns, part, axes, tile, flags)
            weight1 = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
            bias1 = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
    if flags.features == ALONG_R1 and not flags.per_cell:
        row = along_r0 * programs + first
        here = FeatureSums(of_weight, of_bias, row, 0)
        columns = columns_of(first, k1, axes, tile)
        store_r1(here, weight1, bias1, columns, part, axes, tile, flags)


@triton.jit(do_not_specialize=["cells", "number", "count"])
def merge_sums(
    along_sums, plain_sums, weight, counts, means, of_weight, of_bias, cells, number, count, index,
    flags: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The means over each cell, ``means[0..1, cell]``, from the sums ``[part, cell, column]``.

    Where a cell is a weight's only one, also the gradients of weight and bias.
    """
    OF_COLUMN: tl.constexpr = flags.features == ALONG_CELL or flags.features == ALONG_COLUMN
    F: tl.constexpr = along_sums.dtype.element_ty
    cell, at, present = place_of_parts(cells, number, COLUMNS, CELLS, PARTS)
    exists = cell < cells
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
            if flags.features == ALONG_COLUMN:
                first = first + (tl.arange(0, PARTS) % COLUMNS)[None, :]
            scaled = centered(tl.load(weight + first, mask=present, other=0.0).to(F), flags)
            along = along * scaled
            plain = plain * scaled
        if counts is not None:
            values = tl.maximum(tl.load(counts + cell, mask=exists, other=1.0).to(F), 1.0)
        else:
            values = tl.zeros([CELLS], F) + count
        tl.store(means + cell, tl.sum(along, 1) / values, mask=exists)
        if flags.center:
            tl.store(means + cells + cell, tl.sum(plain, 1) / values, mask=exists)


@triton.jit(do_not_specialize=["k1", "cells"])
def part_gradient(
    dy, dsum, x, mask, gate, skip, means, mean_in, std_in, weight, bias, dx, dgate, dskip,
    k1, cells, axes, index, mask_index,
    tile: tl.constexpr, flags: tl.constexpr,
):  # fmt: skip
    """dx of a part, and what is stored with it, from the means over each cell.

    Without means, the moments do not depend on x, or dx is not asked for.
    """
    F: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    columns, part, _ = task_of_program(k1, axes, tile)
    standardizer = standardizer_of(mean_in, std_in, columns, index, flags)
    along = standardizer.scale
    plain = standardizer.scale
    if means is not None:
        along = tl.load(means + columns.cell, mask=columns.exists, other=0.0)
        if flags.center:
            plain = tl.load(means + cells + columns.cell, mask=columns.exists, other=0.0)
    inputs = Inputs(dy, x, mask, gate, skip, weight, bias)
    walk_dx(
        inputs, Outputs(dx, dgate, dskip), dsum, columns, standardizer, part, along, plain, axes, index, mask_index,
        tile, flags, means is None, F,
    )  # fmt: skip


@triton.jit(do_not_specialize=["k1", "blocks"])
def region_gradient(
    dy, dsum, x, mask, gate, skip, counts, mean_in, std_in, weight, bias, of_weight, of_bias, dx, dgate, dskip,
    k1, blocks, axes, index, mask_index,
    tile: tl.constexpr, flags: tl.constexpr, WALK: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """dx of whole regions and what is stored with it, and on the way the sums for weights.

    FIXED moments do not depend on x; then the sums are for the weights alone. A program takes every
    ``num_programs(0)``-th block, or those of one index of k0, and adds up sums that its blocks have in common.
    """
    F: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    COLUMNS: tl.constexpr = tile.k1 * tile.columns
    OF_COLUMN: tl.constexpr = flags.features == ALONG_CELL or flags.features == ALONG_COLUMN
    ALONG_AXIS: tl.constexpr = flags.features == ALONG_R0 or flags.features == ALONG_R1
    IN_COMMON: tl.constexpr = WALK == WALK_WHOLE and ALONG_AXIS and not flags.per_cell
    STORED: tl.constexpr = dx is not None or (flags.gate_first and dgate is not None)
    inputs = Inputs(dy, x, mask, gate, skip, weight, bias)
    outputs = Outputs(dx, dgate, dskip)
    part = part_of(0, axes, tile)
    number = axes.r0 if flags.features == ALONG_R0 else size_of_r1(axes, tile)
    ROOM: tl.constexpr = tile.r0 if flags.features == ALONG_R0 else tile.r1
    if IN_COMMON:
        all_weight = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
        all_bias = tl.zeros([COLUMNS, tile.r0 * tile.r1], F)
    begin, end, step = blocks_of_program(
        tl.program_id(0), tl.num_programs(0), blocks, k1, index.cell_mod, tile, IN_COMMON and flags.sets
    )
    for block in range(begin, end, step):
        columns = columns_of(block, k1, axes, tile)
        standardizer = standardizer_of(mean_in, std_in, columns, index, flags)
        if WALK == WALK_WHOLE:
            elements = elements_of(columns, part, part.begin0, part.begin1, axes, tile)
            gradient = gradient_of(
                inputs, outputs, columns, standardizer, part, elements, index, mask_index,
                tile, flags, F, "evict_first",
            )  # fmt: skip
            summed = gradient.affine if OF_COLUMN else gradient.inner
            along = tl.sum(summed * gradient.x_hat, 1)
            plain = along
            if flags.center or (OF_COLUMN and flags.bias):
                plain = tl.sum(summed, 1)
            if IN_COMMON:
                all_weight += gradient.affine * gradient.x_hat
                if flags.bias:
                    all_bias += gradient.affine
            elif ALONG_AXIS:
                here = FeatureSums(of_weight, of_bias, 0, 0)
                own_weight = sum_along(gradient.affine * gradient.x_hat, tile, flags)
                own_bias = sum_along(gradient.affine, tile, flags)
                store_features(here, own_weight, own_bias, columns, 0, number, number, ROOM, flags)
        else:
            here = FeatureSums(of_weight, of_bias, block, 0)
            none = tl.zeros([1, 1], F)
            along, plain, _, _ = walked_sums(
                inputs, columns, standardizer, part, here, none, none, axes, index, mask_index,
                tile, flags, F, "evict_last",
            )  # fmt: skip
        if OF_COLUMN:
            at = place_of_columns(columns, tile)
            store_pair(FeatureSums(of_weight, of_bias, 0, 0), at, columns.exists, along, plain, flags)
        if STORED or (WALK != WALK_WHOLE and (dgate is not None or dskip is not None)):
            if not FIXED:
                along, plain = means_over_cell(
                    along, plain, weight, counts, columns, standardizer, axes, tile, flags, F
                )
            if WALK == WALK_WHOLE:
                g = dx_of(gradient, standardizer, along, plain, flags, FIXED)
                store_dx(outputs, dsum, gradient, g, elements, flags, F)
            else:
                walk_dx(
                    inputs, outputs, dsum, columns, standardizer, part, along, plain, axes, index, mask_index,
                    tile, flags, FIXED, F,
                )  # fmt: skip
    if IN_COMMON:
        here = FeatureSums(of_weight, of_bias, tl.program_id(0), 0)
        store_in_common(here, all_weight, all_bias, number, ROOM, tile, flags)
