"""Weight normalization: lengths of regions, weights of a length that is given, and their gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from normkit.kernels.triton.tiles import columns_of, root, tile_of


@triton.jit
def with_tile(v, largest, square):
    """Largest value so far, and the sum of squares over its square, which overflows for no length that fp32 holds."""
    most = tl.maximum(largest, tl.max(tl.abs(v), 1))
    safe = tl.where(most > 0, most, 1.0)
    shrunk = largest / safe
    scaled = v / safe[:, None]
    return most, square * shrunk * shrunk + tl.sum(scaled * scaled, 1)


@triton.jit
def length_of(largest, square):
    """1 where all is 0, so that it may be divided by."""
    return tl.where(largest > 0, largest * root(square), 1.0)


@triton.jit
def walked_length(
    v, base, is_cell, lo0, hi0, lo1, hi1, sr0,
    BK: tl.constexpr, BR0: tl.constexpr, BR1: tl.constexpr, BIG: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    largest = tl.zeros([BK], F)
    square = tl.zeros([BK], F)
    for at0 in range(lo0, hi0, BR0):
        for at1 in range(lo1, hi1, BR1):
            r0, r1, off, inside = tile_of(base, is_cell, at0, hi0, at1, hi1, sr0, BR0, BR1, BIG)
            largest, square = with_tile(tl.load(v + off, mask=inside, other=0.0).to(F), largest, square)
    return largest, square


@triton.jit(do_not_specialize=["K", "cells"])
def part_lengths(
    v, parts, K, R0, R1, cells, sk0, sk, sr0, P0, P1, S1,
    BK: tl.constexpr, BR0: tl.constexpr, BR1: tl.constexpr, BIG: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Of each part of a region: parts[0..1, part, cell]."""
    cell, c, is_cell, base, first = columns_of(tl.program_id(0), K, 1, sk0, sk, 1, 1, 0, BK, 1, 1, BIG)
    part = tl.program_id(1)
    lo0 = part // S1 * P0
    lo1 = part % S1 * P1
    largest, square = walked_length(
        v, base, is_cell, lo0, tl.minimum(lo0 + P0, R0), lo1, tl.minimum(lo1 + P1, R1), sr0, BK, BR0, BR1, BIG, F
    )
    tl.store(parts + part * cells + cell, largest, mask=is_cell)
    tl.store(parts + (tl.num_programs(1) + part) * cells + cell, square, mask=is_cell)


@triton.jit(do_not_specialize=["K", "cells"])
def weight_norm(
    v, g, parts, w, length_out, K, R0, R1, cells, sk0, sk, sr0, P0, P1, S1,
    WALK: tl.constexpr, BK: tl.constexpr, BR0: tl.constexpr, BR1: tl.constexpr, PARTS: tl.constexpr,
    BIG: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """w = v * (g / length)."""
    cell, c, is_cell, base, first = columns_of(tl.program_id(0), K, 1, sk0, sk, 1, 1, 0, BK, 1, 1, BIG)
    part = tl.program_id(1)
    lo0 = part // S1 * P0
    lo1 = part % S1 * P1
    hi0 = tl.minimum(lo0 + P0, R0)
    hi1 = tl.minimum(lo1 + P1, R1)
    if WALK == 0:
        r0, r1, off, inside = tile_of(base, is_cell, lo0, hi0, lo1, hi1, sr0, BR0, BR1, BIG)
        value = tl.load(v + off, mask=inside, other=0.0).to(F)
        largest, square = with_tile(value, tl.zeros([BK], F), tl.zeros([BK], F))
    elif WALK == 1:
        largest, square = walked_length(v, base, is_cell, lo0, hi0, lo1, hi1, sr0, BK, BR0, BR1, BIG, F)
    else:
        every = tl.arange(0, PARTS)
        at = every[None, :] * cells + cell[:, None]
        there = is_cell[:, None] & (every < tl.num_programs(1))[None, :]
        each = tl.load(parts + at, mask=there, other=0.0)
        squares = tl.load(parts + tl.num_programs(1) * cells + at, mask=there, other=0.0)
        largest = tl.max(each, 1)
        shrunk = each / tl.where(largest > 0, largest, 1.0)[:, None]
        square = tl.sum(squares * shrunk * shrunk, 1)
    length = length_of(largest, square)
    if part == 0:
        tl.store(length_out + cell, length, mask=is_cell)
    scale = tl.load(g + cell, mask=is_cell, other=0.0) / length
    for at0 in range(lo0, hi0, BR0):
        for at1 in range(lo1, hi1, BR1):
            if WALK != 0:
                r0, r1, off, inside = tile_of(base, is_cell, at0, hi0, at1, hi1, sr0, BR0, BR1, BIG)
                value = tl.load(v + off, mask=inside, other=0.0).to(F)
            tl.store(w + off, value * scale[:, None], mask=inside)


@triton.jit
def walked_along(
    dw, v, length, base, is_cell, lo0, hi0, lo1, hi1, sr0,
    BK: tl.constexpr, BR0: tl.constexpr, BR1: tl.constexpr, BIG: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """The sum of dw times the direction."""
    total = tl.zeros([BK, BR0 * BR1], F)
    for at0 in range(lo0, hi0, BR0):
        for at1 in range(lo1, hi1, BR1):
            r0, r1, off, inside = tile_of(base, is_cell, at0, hi0, at1, hi1, sr0, BR0, BR1, BIG)
            unit = tl.load(v + off, mask=inside, other=0.0).to(F) / length[:, None]
            total += tl.load(dw + off, mask=inside, other=0.0).to(F) * unit
    return tl.sum(total, 1)


@triton.jit(do_not_specialize=["K", "cells"])
def part_along(
    dw, v, length_in, parts, K, R0, R1, cells, sk0, sk, sr0, P0, P1, S1,
    BK: tl.constexpr, BR0: tl.constexpr, BR1: tl.constexpr, BIG: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Of each part of a region: parts[part, cell]."""
    cell, c, is_cell, base, first = columns_of(tl.program_id(0), K, 1, sk0, sk, 1, 1, 0, BK, 1, 1, BIG)
    part = tl.program_id(1)
    lo0 = part // S1 * P0
    lo1 = part % S1 * P1
    length = tl.load(length_in + cell, mask=is_cell, other=1.0)
    along = walked_along(
        dw, v, length, base, is_cell, lo0, tl.minimum(lo0 + P0, R0), lo1, tl.minimum(lo1 + P1, R1), sr0,
        BK, BR0, BR1, BIG, F,
    )  # fmt: skip
    tl.store(parts + part * cells + cell, along, mask=is_cell)


@triton.jit(do_not_specialize=["K", "cells"])
def weight_norm_backward(
    dw, v, g, length_in, parts, dv, dg, K, R0, R1, cells, sk0, sk, sr0, P0, P1, S1,
    WALK: tl.constexpr, BK: tl.constexpr, BR0: tl.constexpr, BR1: tl.constexpr, PARTS: tl.constexpr,
    BIG: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """dv = g / length * (dw - direction * along), and dg = along."""
    cell, c, is_cell, base, first = columns_of(tl.program_id(0), K, 1, sk0, sk, 1, 1, 0, BK, 1, 1, BIG)
    part = tl.program_id(1)
    lo0 = part // S1 * P0
    lo1 = part % S1 * P1
    hi0 = tl.minimum(lo0 + P0, R0)
    hi1 = tl.minimum(lo1 + P1, R1)
    length = tl.load(length_in + cell, mask=is_cell, other=1.0)
    if WALK == 0:
        r0, r1, off, inside = tile_of(base, is_cell, lo0, hi0, lo1, hi1, sr0, BR0, BR1, BIG)
        unit = tl.load(v + off, mask=inside, other=0.0).to(F) / length[:, None]
        d = tl.load(dw + off, mask=inside, other=0.0).to(F)
        along = tl.sum(d * unit, 1)
    elif WALK == 1:
        along = walked_along(dw, v, length, base, is_cell, lo0, hi0, lo1, hi1, sr0, BK, BR0, BR1, BIG, F)
    else:
        every = tl.arange(0, PARTS)
        there = is_cell[:, None] & (every < tl.num_programs(1))[None, :]
        along = tl.sum(tl.load(parts + every[None, :] * cells + cell[:, None], mask=there, other=0.0), 1)
    if part == 0:
        tl.store(dg + cell, along, mask=is_cell)
    scale = tl.load(g + cell, mask=is_cell, other=0.0) / length
    for at0 in range(lo0, hi0, BR0):
        for at1 in range(lo1, hi1, BR1):
            if WALK != 0:
                r0, r1, off, inside = tile_of(base, is_cell, at0, hi0, at1, hi1, sr0, BR0, BR1, BIG)
                unit = tl.load(v + off, mask=inside, other=0.0).to(F) / length[:, None]
                d = tl.load(dw + off, mask=inside, other=0.0).to(F)
            tl.store(dv + off, (d - unit * along[:, None]) * scale[:, None], mask=inside)
