"""Gradients of weight and bias: sums that are left to be added up, and those of any region by an element's offset."""

from __future__ import annotations

import triton
import triton.language as tl

from normkit.kernels.triton.code.activation import activate, derivative
from normkit.kernels.triton.code.constants import IDENTITY, MASK_NONE
from normkit.kernels.triton.code.gradient import FeatureSums, store_pair
from normkit.kernels.triton.code.moments import scale_of
from normkit.kernels.triton.code.tiles import centered


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
    dy, x, mask, gate, skip, mean_in, std_in, weight, bias, part_weight, part_bias, others, share,
    view, mask_index, flags: tl.constexpr, FEATURES: tl.constexpr, OTHERS: tl.constexpr,
    WIDE: tl.constexpr, STRIDED: tl.constexpr,
):  # fmt: skip
    """The gradients of weight and bias alone, for any region.

    Element (a, feature, i) of a slab is at ``(a * period + feature) * inner + i``, and its cell follows from that
    offset. A program adds up a share of the others, that is of all (a, i) of a slab.
    """
    GATED: tl.constexpr = gate is not None and not flags.gate_first
    F: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    across = tl.cdiv(view.period, FEATURES)
    feature = tl.program_id(0) % across * FEATURES + tl.arange(0, FEATURES)
    is_feature = feature < view.period
    slab = tl.program_id(0) // across // view.parts
    number = tl.program_id(0) // across % view.parts
    at_feature = slab * view.period + feature
    of_weight = tl.zeros([FEATURES], F)
    of_bias = tl.zeros([FEATURES], F)
    if weight is not None:
        weights = centered(tl.load(weight + at_feature, mask=is_feature, other=0.0).to(F), flags)
    if bias is not None:
        biases = tl.load(bias + at_feature, mask=is_feature, other=0.0).to(F)
    begin = number
    base = slab
    if WIDE:
        begin = begin.to(tl.int64)
        base = base.to(tl.int64)
    base = base * view.slab
    begin = begin * share
    end = tl.minimum(begin + share, others)
    for at in range(begin, end, OTHERS):
        other = at + tl.arange(0, OTHERS)
        inside = is_feature[:, None] & (other < end)[None, :]
        outer = (other // view.inner * view.period)[None, :]
        offset = base + (outer + feature[:, None]) * view.inner + (other % view.inner)[None, :]
        cell = offset // view.outer_size * view.k1 + offset // view.r1 % view.k1
        valid = inside
        if flags.mask != MASK_NONE:
            places = mask_index.channels * mask_index.positions
            byte = offset // places * mask_index.positions + offset % mask_index.positions
            valid = inside & (tl.load(mask + byte, mask=inside, other=0) != 0)
        s = tl.load(std_in + cell, mask=inside, other=1.0)
        source = offset
        if STRIDED:
            source = cell // view.group * view.outer + cell % view.group * view.pitch + offset % view.r1
        value = tl.load(x + source, mask=inside, other=0.0).to(F)
        if flags.gate_first:
            value = value * activate(tl.load(gate + offset, mask=inside, other=0.0).to(F), flags.gate)
        value = tl.where(valid, value, 0.0)
        if mean_in is not None:
            value = value - tl.load(mean_in + cell, mask=inside, other=0.0)
        x_hat = tl.where(valid, value * scale_of(s, flags), 0.0)
        gradient = tl.where(valid, tl.load(dy + offset, mask=inside, other=0.0).to(F), 0.0)
        if GATED:
            opened = tl.where(valid, activate(tl.load(gate + offset, mask=inside, other=0.0).to(F), flags.gate), 0.0)
        if flags.activation != IDENTITY:
            z = x_hat
            if weight is not None:
                z = z * weights[:, None]
            if bias is not None:
                z = z + biases[:, None]
            if GATED:
                z = z * opened
            if skip is not None:
                z = z + tl.where(valid, tl.load(skip + offset, mask=inside, other=0.0).to(F), 0.0)
            gradient = gradient * derivative(z, flags.activation)
        if GATED:
            gradient = gradient * opened
        of_weight += tl.sum(gradient * x_hat, 1)
        of_bias += tl.sum(gradient, 1)
    at = number * (tl.num_programs(0) // across // view.parts * view.period) + at_feature
    store_pair(FeatureSums(part_weight, part_bias, 0, 0), at, is_feature, of_weight, of_bias, flags)
