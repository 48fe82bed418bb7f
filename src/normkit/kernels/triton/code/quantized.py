"""Rows in 8 bits: normalized, gated, and rounded with a scale for each row or group."""

from __future__ import annotations

import triton
import triton.language as tl

from normkit.kernels.triton.code.activation import activate
from normkit.kernels.triton.code.moments import (
    TINY,
    exceeds_range,
    mean_and_deviation,
    scale_of,
    tile_moments,
    where_in_range,
)

TO_NEAREST = tl.constexpr(12582912.0)
"""1.5 * 2**23: float32 has no digits after the point there, so a sum with it is rounded to a whole number."""


@triton.jit
def rounded(z, LARGEST: tl.constexpr, D: tl.constexpr):
    """To nearest, ties to even; beyond LARGEST it is that. NaN stays, but is 0 in int8."""
    if tl.int8 == D:
        whole = (tl.clamp(tl.where(z == z, z, 0.0), -LARGEST, LARGEST) + TO_NEAREST) - TO_NEAREST
        return whole.to(tl.int32).to(tl.int8)
    else:
        # NaN is chosen again: `clamp` may replace it.
        return tl.where(z == z, tl.clamp(z, -LARGEST, LARGEST), z).to(D, fp_downcast_rounding="rtne")


@triton.jit
def power_of_two(largest, EXPONENT: tl.constexpr):
    """The code in E8M0 of ``2 ** (floor(log2(largest)) - EXPONENT)``, and its inverse."""
    bits = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    biased = tl.maximum(bits - EXPONENT, 0)
    inverse = ((254 - biased) << 23).to(tl.float32, bitcast=True)
    return tl.where(bits == 255, 255, biased), tl.where(bits == 255, float("nan"), inverse)


@triton.jit(do_not_specialize=["rows"])
def quantize(
    x, residual, total, gate, weight, bias, given, y, scale_out, rows, length,
    flags: tl.constexpr, GATE: tl.constexpr, ZERO_CENTERED: tl.constexpr,
    LARGEST: tl.constexpr, SMALLEST: tl.constexpr, EXPONENT: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Normalized rows divided by a scale, which is given or that of their groups.

    A scale brings the largest value of its group to LARGEST, or with an EXPONENT is a power of two. A row fills up
    GROUPS times GROUP elements.
    """
    block = tl.program_id(0)
    if WIDE:
        block = block.to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    place = tl.arange(0, GROUPS * GROUP)
    inside = (row < rows)[:, None] & (place < length)[None, :]
    offset = row[:, None] * length + place[None, :]
    value = tl.load(x + offset, mask=inside, other=0.0, eviction_policy="evict_first")
    if residual is not None:
        added = tl.load(residual + offset, mask=inside, other=0.0, eviction_policy="evict_first")
        value = (value.to(tl.float32) + added.to(tl.float32)).to(value.dtype)
        tl.store(total + offset, value, mask=inside)
    value = value.to(tl.float32)
    number = tl.zeros([ROWS], tl.float32) + length
    mean, std = mean_and_deviation(tile_moments(value, inside, number, flags.center), False)
    if exceeds_range(std):
        shrunk_mean, shrunk_std = mean_and_deviation(tile_moments(value * TINY, inside, number, flags.center), True)
        mean, std = where_in_range(mean, std, shrunk_mean, shrunk_std)
    z = (value - mean[:, None]) * scale_of(std, flags)[:, None]
    if weight is not None:
        of_place = tl.load(weight + place, mask=place < length, other=0.0).to(tl.float32)
        if ZERO_CENTERED:
            of_place += 1.0
        z = z * of_place[None, :]
    if bias is not None:
        z = z + tl.load(bias + place, mask=place < length, other=0.0).to(tl.float32)[None, :]
    if gate is not None:
        z = z * activate(tl.load(gate + offset, mask=inside, other=0.0).to(tl.float32), GATE)
    if given is not None:
        z = z / tl.load(given)
    else:
        groups = tl.reshape(tl.where(inside, z, 0.0), [ROWS, GROUPS, GROUP])
        size = tl.abs(groups)
        largest = tl.max(size, 2)
        # A maximum may pass over NaN.
        finite = tl.min(tl.where(size < float("inf"), 1, 0), 2) != 0
        largest = tl.where(finite, largest, float("nan"))
        group = tl.arange(0, GROUPS)
        present = (row < rows)[:, None] & (group * GROUP < length)[None, :]
        at = row[:, None] * tl.cdiv(length, GROUP) + group[None, :]
        if EXPONENT == 0:
            scale = tl.where(largest == 0, 1.0, tl.div_rn(largest, LARGEST))
            scale = tl.where(scale < SMALLEST, SMALLEST, scale)
            tl.store(scale_out + at, scale, mask=present)
            groups = groups / scale[:, :, None]
        else:
            code, inverse = power_of_two(largest, EXPONENT)
            tl.store(scale_out + at, code.to(tl.uint8), mask=present)
            groups = groups * inverse[:, :, None]
        z = tl.reshape(groups, [ROWS, GROUPS * GROUP])
    tl.store(y + offset, rounded(z, LARGEST, y.dtype.element_ty), mask=inside)
