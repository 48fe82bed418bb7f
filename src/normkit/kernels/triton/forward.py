"""Forward: moments of parts of a region, and the normalization of it."""

from __future__ import annotations

import triton
import triton.language as tl

from normkit.kernels.triton.tiles import (
    activated,
    columns_of,
    inverse,
    joined,
    merged,
    parameter,
    real_of,
    root,
    tile_moments,
    tile_of,
)


@triton.jit
def value_of(x, residual, total, off, inside, real, F: tl.constexpr):
    """The values of a tile, the residual added; that sum is kept where it is wanted. 0 where nothing is real."""
    v = tl.load(x + off, mask=inside, other=0.0)
    if residual is not None:
        v = (v.to(F) + tl.load(residual + off, mask=inside, other=0.0).to(F)).to(v.dtype)
        if total is not None:
            tl.store(total + off, v, mask=inside)
    return tl.where(real, v.to(F), 0.0)


@triton.jit
def walked_moments(
    x, residual, total, mask, base, there, cell, c, lo0, hi0, lo1, hi1, sr0,
    d0, m0, d1, m1, mr0, mr1, channels, places,
    CENTER: tl.constexpr, MASK: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BR0: tl.constexpr,
    BR1: tl.constexpr, BIG: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Moments of the part of a region from lo to hi, a tile at a time."""
    n = tl.zeros([BK * BC], F)
    mean = tl.zeros([BK * BC], F)
    rest = tl.zeros([BK * BC], F)
    square = tl.zeros([BK * BC], F)
    for at0 in range(lo0, hi0, BR0):
        for at1 in range(lo1, hi1, BR1):
            r0, r1, off, inside = tile_of(base, there, at0, hi0, at1, hi1, sr0, BR0, BR1, BIG)
            real = real_of(mask, off, inside, cell, c, r0, r1, d0, m0, d1, m1, mr0, mr1, channels, places, MASK)
            v = value_of(x, residual, total, off, inside, real, F)
            n_b = tl.sum(real.to(F), 1)
            mean_b, rest_b, square_b = tile_moments(v, real, tl.maximum(n_b, 1.0), CENTER)
            n, mean, rest, square = merged(n, mean, rest, square, n_b, mean_b, rest_b, square_b, CENTER)
    return joined(n, mean, rest, square, BK, BC, CENTER)


@triton.jit(do_not_specialize=["K", "cells"])
def part_moments(
    x, residual, total, mask, parts,
    K, C: tl.constexpr, R0, R1, cells, sk0, sk, sr0, P0, P1, S1, cdiv, cmod, cmult,
    d0, m0, d1, m1, mr0, mr1, channels, places,
    CENTER: tl.constexpr, MASK: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BR0: tl.constexpr,
    BR1: tl.constexpr, BIG: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Count, mean and sum of squares of each part: parts[0..2, part, cell]."""
    cell, c, there, base, _ = columns_of(tl.program_id(0), K, C, sk0, sk, cdiv, cmod, cmult, BK, BC, 1, BIG)
    part = tl.program_id(1)
    lo0 = part // S1 * P0
    lo1 = part % S1 * P1
    n, mean, rest, square = walked_moments(
        x, residual, total, mask, base, there, cell, c,
        lo0, tl.minimum(lo0 + P0, R0), lo1, tl.minimum(lo1 + P1, R1), sr0,
        d0, m0, d1, m1, mr0, mr1, channels, places,
        CENTER, MASK, BK, BC, BR0, BR1, BIG, F,
    )  # fmt: skip
    at = part * cells + cell
    step = tl.num_programs(1) * cells
    lead = there & (c == 0)
    tl.store(parts + at, n, mask=lead)
    tl.store(parts + step + at, mean + rest, mask=lead)
    tl.store(parts + 2 * step + at, square, mask=lead)


@triton.jit
def moments_of_parts(parts, cell, there, cells, S, CENTER: tl.constexpr, PARTS: tl.constexpr):
    """The moments of a whole region out of those of its parts, again in two passes."""
    part = tl.arange(0, PARTS)
    at = part[None, :] * cells + cell[:, None]
    present = there[:, None] & (part < S)[None, :]
    n = tl.load(parts + at, mask=present, other=0.0)
    mean = tl.load(parts + S * cells + at, mask=present, other=0.0)
    square = tl.load(parts + 2 * S * cells + at, mask=present, other=0.0)
    total = tl.sum(n, 1)
    share = n / tl.maximum(total, 1.0)[:, None]
    if CENTER:
        middle = tl.sum(mean * share, 1)
        rest = tl.sum((mean - middle[:, None]) * share, 1)
        apart = (mean - middle[:, None]) - rest[:, None]
        return total, middle, rest, tl.sum(square, 1) + tl.sum(apart * apart * n, 1)
    else:
        zero = total * 0.0
        return total, zero, zero, tl.sum(square, 1)


@triton.jit(do_not_specialize=["K", "cells"])
def normalize(
    x, residual, total, mask, mean_in, std_in, weight, bias, parts, y, mean_out, std_out,
    K, C: tl.constexpr, R0, R1, cells, sk0, sk, sr0, P0, P1, S1, cdiv, cmod, cmult, rmult, period, inner,
    d0, m0, d1, m1, mr0, mr1, channels, places,
    EPS: tl.constexpr, CENTER: tl.constexpr, ACT: tl.constexpr, WALK: tl.constexpr, ALONG: tl.constexpr,
    MASK: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BR0: tl.constexpr, BR1: tl.constexpr,
    PARTS: tl.constexpr, BIG: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """y, and the moments where they are not given; see `schedule.Walk` for where they come from."""
    cell, c, there, base, first = columns_of(tl.program_id(0), K, C, sk0, sk, cdiv, cmod, cmult, BK, BC, ALONG, BIG)
    part = tl.program_id(1)
    lo0 = part // S1 * P0
    lo1 = part % S1 * P1
    hi0 = tl.minimum(lo0 + P0, R0)
    hi1 = tl.minimum(lo1 + P1, R1)
    if WALK == 0:
        r0, r1, off, inside = tile_of(base, there, lo0, hi0, lo1, hi1, sr0, BR0, BR1, BIG)
        real = real_of(mask, off, inside, cell, c, r0, r1, d0, m0, d1, m1, mr0, mr1, channels, places, MASK)
        v = value_of(x, residual, total, off, inside, real, F)
        n = tl.sum(real.to(F), 1)
        mean, rest, square = tile_moments(v, real, tl.maximum(n, 1.0), CENTER)
        n, mean, rest, square = joined(n, mean, rest, square, BK, BC, CENTER)
    elif WALK == 1:
        n, mean, rest, square = walked_moments(
            x, residual, total, mask, base, there, cell, c, lo0, hi0, lo1, hi1, sr0,
            d0, m0, d1, m1, mr0, mr1, channels, places,
            CENTER, MASK, BK, BC, BR0, BR1, BIG, F,
        )  # fmt: skip
    elif WALK == 2:
        n, mean, rest, square = moments_of_parts(parts, cell, there, cells, tl.num_programs(1), CENTER, PARTS)
    if WALK == 3:
        std = tl.load(std_in + cell, mask=there, other=1.0)
        var = std * std
        mean = tl.load(mean_in + cell, mask=there, other=0.0)
        rest = mean * 0.0
    else:
        # Padding alone has no deviation; it counts as 1.
        var = tl.where(n == 0, 1.0, square / tl.maximum(n, 1.0))
        if std_out is not None:
            if part == 0:
                lead = there & (c == 0)
                tl.store(std_out + cell, root(var), mask=lead)
                if CENTER:
                    tl.store(mean_out + cell, mean + rest, mask=lead)
    scale = inverse(root(var + EPS))
    for at0 in range(lo0, hi0, BR0):
        for at1 in range(lo1, hi1, BR1):
            if WALK != 0:
                r0, r1, off, inside = tile_of(base, there, at0, hi0, at1, hi1, sr0, BR0, BR1, BIG)
                real = real_of(mask, off, inside, cell, c, r0, r1, d0, m0, d1, m1, mr0, mr1, channels, places, MASK)
                v = value_of(x, residual, total if WALK == 3 else None, off, inside, real, F)
            if CENTER:
                z = ((v - mean[:, None]) - rest[:, None]) * scale[:, None]
            else:
                z = v * scale[:, None]
            if weight is not None:
                z = z * parameter(weight, off, inside, first, there, at0, r0, r1, rmult, period, inner, ALONG, BR0)
            if bias is not None:
                z = z + parameter(bias, off, inside, first, there, at0, r0, r1, rmult, period, inner, ALONG, BR0)
            z = activated(z, ACT)
            if MASK != 0:
                z = tl.where(real, z, 0.0)
            tl.store(y + off, z, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def quantize(
    x, weight, bias, given, y, scale_out, rows, R,
    EPS: tl.constexpr, CENTER: tl.constexpr, MOST: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, BIG: tl.constexpr,
):  # fmt: skip
    """Rows normalized and divided by a scale, which is given or brings each row's largest value to MOST."""
    block = tl.program_id(0)
    if BIG:
        block = block.to(tl.int64)
    row = block * BK + tl.arange(0, BK)
    place = tl.arange(0, BR)
    inside = (row < rows)[:, None] & (place < R)[None, :]
    off = row[:, None] * R + place[None, :]
    v = tl.load(x + off, mask=inside, other=0.0).to(tl.float32)
    mean, rest, square = tile_moments(v, inside, tl.zeros([BK], tl.float32) + R, CENTER)
    z = (v - mean[:, None]) - rest[:, None]
    z = z * inverse(root(square / R + EPS))[:, None]
    if weight is not None:
        z = z * tl.load(weight + place, mask=place < R, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        z = z + tl.load(bias + place, mask=place < R, other=0.0).to(tl.float32)[None, :]
    if given is not None:
        z = z / tl.load(given)
    else:
        most = tl.max(tl.where(inside, tl.abs(z), 0.0), 1)
        scale = tl.where(most > 0, most / MOST, 1.0)
        tl.store(scale_out + row, scale, mask=row < rows)
        z = z / scale[:, None]
    z = tl.clamp(z, -MOST, MOST).to(y.dtype.element_ty, fp_downcast_rounding="rtne")
    tl.store(y + off, z, mask=inside)


@triton.jit
def move_running(running_mean, running_var, mean, std, channels, samples, unbias, momentum, BLOCK: tl.constexpr):
    """Running statistics go towards a batch's, averaged over its samples where each has its own.

    A channel keeps what it has where the result would not be finite.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < channels
    new_mean = tl.zeros([BLOCK], mean.dtype.element_ty)
    new_var = tl.zeros([BLOCK], mean.dtype.element_ty)
    for sample in range(0, samples):
        s = tl.load(std + sample * channels + at, mask=there, other=0.0)
        new_mean += tl.load(mean + sample * channels + at, mask=there, other=0.0)
        new_var += s * s * unbias
    old_mean = tl.load(running_mean + at, mask=there, other=0.0)
    old_var = tl.load(running_var + at, mask=there, other=0.0)
    new_mean = old_mean + (new_mean / samples - old_mean) * momentum
    new_var = old_var + (new_var / samples - old_var) * momentum
    finite = (tl.abs(new_mean) < float("inf")) & (tl.abs(new_var) < float("inf"))
    tl.store(running_mean + at, new_mean, mask=there & finite)
    tl.store(running_var + at, new_var, mask=there & finite)
