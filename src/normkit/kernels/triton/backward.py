"""Backward: sums of gradients over regions and over what shares a weight, and the gradient of the input."""

from __future__ import annotations

import triton
import triton.language as tl

from normkit.kernels.triton.tiles import columns_of, inverse, over_cell, parameter, real_of, root, slope, tile_of


@triton.jit
def scales_of(mean, std, cell, there, EPS: tl.constexpr):
    """Mean and 1 / sqrt(var + eps) of each cell; the mean is 0 where there is none."""
    s = tl.load(std + cell, mask=there, other=1.0)
    scale = inverse(root(s * s + EPS))
    if mean is not None:
        return tl.load(mean + cell, mask=there, other=0.0), scale
    else:
        return scale * 0.0, scale


@triton.jit
def gradient_tile(
    dy, x, weight, bias, mean, scale, off, inside, real, first, there, at0, r0, r1, rmult, period,
    inner, ACT: tl.constexpr, ALONG: tl.constexpr, BR0: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Standardized x, the gradient of what the activation is applied to, and that times the weight."""
    v = tl.where(real, tl.load(x + off, mask=inside, other=0.0).to(F), 0.0)
    hat = tl.where(real, (v - mean[:, None]) * scale[:, None], 0.0)
    d = tl.where(real, tl.load(dy + off, mask=inside, other=0.0).to(F), 0.0)
    if weight is not None:
        w = parameter(weight, off, inside, first, there, at0, r0, r1, rmult, period, inner, ALONG, BR0)
        if ACT != 0:
            z = hat * w
            if bias is not None:
                z = z + parameter(bias, off, inside, first, there, at0, r0, r1, rmult, period, inner, ALONG, BR0)
            d = d * slope(z, ACT)
        return hat, d, d * w
    else:
        if ACT != 0:
            z = hat
            if bias is not None:
                z = z + parameter(bias, off, inside, first, there, at0, r0, r1, rmult, period, inner, ALONG, BR0)
            d = d * slope(z, ACT)
        return hat, d, d


@triton.jit
def keep(sums, half, at, present, first, second):
    """Two sums side by side: for the weight, and for the bias."""
    tl.store(sums + at, first, mask=present)
    tl.store(sums + half + at, second, mask=present)


@triton.jit
def keep_features(
    features, half, w, b, cell, there, at, end, row, rows_of_cells, SIZE, B: tl.constexpr, PER_CELL: tl.constexpr
):
    """Sums over what shares a weight along r0 or r1, from `at` on: [BK, B] of them for each cell, or for all cells."""
    place = at + tl.arange(0, B)
    if PER_CELL:
        present = there[:, None] & (place < end)[None, :]
        keep(features, half, (rows_of_cells + cell)[:, None] * SIZE + place[None, :], present, w, b)
    else:
        keep(features, half, row * SIZE + place, place < end, tl.sum(w, 0), tl.sum(b, 0))


@triton.jit
def walked_sums(
    dy, x, mask, weight, bias, features, mean, scale, base, cell, c, there, first,
    lo0, hi0, lo1, hi1, R0, R1, sr0, rmult, period, inner, half, row0, row1, rows0, rows1,
    d0, m0, d1, m1, mr0, mr1, channels, places,
    ACT: tl.constexpr, KIND: tl.constexpr, PER_CELL: tl.constexpr, ALONG: tl.constexpr,
    MASK: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BR0: tl.constexpr, BR1: tl.constexpr,
    BIG: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Sums over a part of each column, and those over its features, which are kept.

    The sums are of g * x_hat and g; before the weight is applied, where one weight belongs to the whole cell.
    """
    along = tl.zeros([BK * BC, BR0 * BR1], F)
    plain = tl.zeros([BK * BC, BR0 * BR1], F)
    if KIND == 3:
        w1 = tl.zeros([BK * BC, BR0 * BR1], F)
        b1 = tl.zeros([BK * BC, BR0 * BR1], F)
    for at0 in range(lo0, hi0, BR0):
        if KIND == 2:
            w0 = tl.zeros([BK * BC, BR0 * BR1], F)
            b0 = tl.zeros([BK * BC, BR0 * BR1], F)
        for at1 in range(lo1, hi1, BR1):
            r0, r1, off, inside = tile_of(base, there, at0, hi0, at1, hi1, sr0, BR0, BR1, BIG)
            real = real_of(mask, off, inside, cell, c, r0, r1, d0, m0, d1, m1, mr0, mr1, channels, places, MASK)
            hat, d, g = gradient_tile(
                dy, x, weight, bias, mean, scale, off, inside, real, first, there, at0, r0, r1, rmult, period, inner,
                ACT, ALONG, BR0, F,
            )  # fmt: skip
            if KIND == 1:
                g = d
            along += g * hat
            plain += g
            if KIND == 2:
                w0 += d * hat
                b0 += d
            if KIND == 3:
                w1 += d * hat
                b1 += d
        if KIND == 2:
            w = tl.sum(tl.reshape(w0, [BK, BR0, BR1]), 2)
            b = tl.sum(tl.reshape(b0, [BK, BR0, BR1]), 2)
            keep_features(features, half, w, b, cell, there, at0, hi0, row1, rows1, R0, BR0, PER_CELL)
    if KIND == 3:
        w = tl.sum(tl.reshape(w1, [BK, BR0, BR1]), 1)
        b = tl.sum(tl.reshape(b1, [BK, BR0, BR1]), 1)
        keep_features(features, half, w, b, cell, there, lo1, hi1, row0, rows0, R1, BR1, PER_CELL)
    return tl.sum(along, 1), tl.sum(plain, 1)


@triton.jit(do_not_specialize=["K", "cells", "columns", "half"])
def part_sums(
    dy, x, mask, mean_in, std_in, weight, bias, sums, features,
    K, C: tl.constexpr, R0, R1, cells, columns, sk0, sk, sr0, P0, P1, S1, cdiv, cmod, cmult, rmult, period, inner, half,
    d0, m0, d1, m1, mr0, mr1, channels, places,
    EPS: tl.constexpr, ACT: tl.constexpr, KIND: tl.constexpr, PER_CELL: tl.constexpr, ALONG: tl.constexpr,
    MASK: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BR0: tl.constexpr, BR1: tl.constexpr,
    BIG: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """The sums of each part of a region: sums[0..1, part, cell]."""
    block = tl.program_id(0)
    cell, c, there, base, first = columns_of(block, K, C, sk0, sk, cdiv, cmod, cmult, BK, BC, ALONG, BIG)
    part = tl.program_id(1)
    lo0 = part // S1 * P0
    lo1 = part % S1 * P1
    mean, scale = scales_of(mean_in, std_in, cell, there, EPS)
    wide = tl.num_programs(0)
    along, plain = walked_sums(
        dy, x, mask, weight, bias, features, mean, scale, base, cell, c, there, first,
        lo0, tl.minimum(lo0 + P0, R0), lo1, tl.minimum(lo1 + P1, R1), R0, R1, sr0, rmult, period, inner, half,
        part // S1 * wide + block, part % S1 * wide + block, part // S1 * cells, part % S1 * cells,
        d0, m0, d1, m1, mr0, mr1, channels, places,
        ACT, KIND, PER_CELL, ALONG, MASK, BK, BC, BR0, BR1, BIG, F,
    )  # fmt: skip
    if sums is not None:
        keep(sums, tl.num_programs(1) * columns, part * columns + cell * C + c, there, along, plain)


@triton.jit(do_not_specialize=["K", "cells", "columns", "half", "blocks"])
def input_gradient(
    dy, dsum, x, mask, counts, mean_in, std_in, weight, bias, sums, features, dx,
    K, C: tl.constexpr, R0, R1, cells, columns, sk0, sk, sr0, P0, P1, S1,
    cdiv, cmod, cmult, rmult, period, inner, half, blocks,
    d0, m0, d1, m1, mr0, mr1, channels, places,
    EPS: tl.constexpr, CENTER: tl.constexpr, FIXED: tl.constexpr, ACT: tl.constexpr, WALK: tl.constexpr,
    KIND: tl.constexpr, PER_CELL: tl.constexpr, ALONG: tl.constexpr, MASK: tl.constexpr,
    BK: tl.constexpr, BC: tl.constexpr, BR0: tl.constexpr, BR1: tl.constexpr,
    PARTS: tl.constexpr, BIG: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """dx; and where a region is not cut into parts, the sums over features on the way.

    FIXED moments do not depend on x; then the sums are for the features alone. A program takes every so many-th block,
    and adds up what those have in common.
    """
    part = tl.program_id(1)
    lo0 = part // S1 * P0
    lo1 = part % S1 * P1
    hi0 = tl.minimum(lo0 + P0, R0)
    hi1 = tl.minimum(lo1 + P1, R1)
    if WALK == 0 and not PER_CELL:
        if KIND == 2:
            w_all = tl.zeros([BR0], F)
            b_all = tl.zeros([BR0], F)
        if KIND == 3:
            w_all = tl.zeros([BR1], F)
            b_all = tl.zeros([BR1], F)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        cell, c, there, base, first = columns_of(block, K, C, sk0, sk, cdiv, cmod, cmult, BK, BC, ALONG, BIG)
        mean, scale = scales_of(mean_in, std_in, cell, there, EPS)
        if counts is not None:
            n = tl.maximum(tl.load(counts + cell, mask=there, other=1.0).to(F), 1.0)
        else:
            n = (tl.zeros([BK * BC], F) + R0) * R1 * C
        if WALK == 0:
            at0 = lo0
            r0, r1, off, inside = tile_of(base, there, lo0, hi0, lo1, hi1, sr0, BR0, BR1, BIG)
            real = real_of(mask, off, inside, cell, c, r0, r1, d0, m0, d1, m1, mr0, mr1, channels, places, MASK)
            hat, d, g = gradient_tile(
                dy, x, weight, bias, mean, scale, off, inside, real, first, there, at0, r0, r1, rmult, period, inner,
                ACT, ALONG, BR0, F,
            )  # fmt: skip
            if KIND == 1:
                along = tl.sum(d * hat, 1)
                plain = tl.sum(d, 1)
                keep(features, half, cell * C + c, there, along, plain)
            else:
                along = tl.sum(g * hat, 1)
                plain = tl.sum(g, 1)
            if KIND == 2:
                w = tl.sum(tl.reshape(d * hat, [BK, BR0, BR1]), 2)
                b = tl.sum(tl.reshape(d, [BK, BR0, BR1]), 2)
            if KIND == 3:
                w = tl.sum(tl.reshape(d * hat, [BK, BR0, BR1]), 1)
                b = tl.sum(tl.reshape(d, [BK, BR0, BR1]), 1)
            if KIND == 2 or KIND == 3:
                if PER_CELL:
                    if KIND == 2:
                        keep_features(features, half, w, b, cell, there, 0, R0, 0, 0, R0, BR0, True)
                    else:
                        keep_features(features, half, w, b, cell, there, 0, R1, 0, 0, R1, BR1, True)
                else:
                    w_all += tl.sum(w, 0)
                    b_all += tl.sum(b, 0)
        elif WALK == 1:
            along, plain = walked_sums(
                dy, x, mask, weight, bias, features, mean, scale, base, cell, c, there, first,
                lo0, hi0, lo1, hi1, R0, R1, sr0, rmult, period, inner, half, block, block, 0, 0,
                d0, m0, d1, m1, mr0, mr1, channels, places,
                ACT, KIND, PER_CELL, ALONG, MASK, BK, BC, BR0, BR1, BIG, F,
            )  # fmt: skip
            if KIND == 1:
                keep(features, half, cell * C + c, there, along, plain)
        elif WALK == 2:
            every = tl.arange(0, PARTS)
            at = every[None, :] * columns + (cell * C + c)[:, None]
            present = there[:, None] & (every < tl.num_programs(1))[None, :]
            along = tl.sum(tl.load(sums + at, mask=present, other=0.0), 1)
            plain = tl.sum(tl.load(sums + tl.num_programs(1) * columns + at, mask=present, other=0.0), 1)
        if dx is not None:
            if not FIXED:
                if KIND == 1 and weight is not None:
                    scaled = tl.load(weight + first, mask=there, other=0.0)
                    along = along * scaled
                    plain = plain * scaled
                along = over_cell(along, BK, BC) / n
                plain = over_cell(plain, BK, BC) / n
            for at0 in range(lo0, hi0, BR0):
                for at1 in range(lo1, hi1, BR1):
                    if WALK != 0:
                        r0, r1, off, inside = tile_of(base, there, at0, hi0, at1, hi1, sr0, BR0, BR1, BIG)
                        real = real_of(
                            mask, off, inside, cell, c, r0, r1, d0, m0, d1, m1, mr0, mr1, channels, places, MASK
                        )
                        hat, d, g = gradient_tile(
                            dy, x, weight, bias, mean, scale, off, inside, real, first, there, at0, r0, r1, rmult,
                            period, inner, ACT, ALONG, BR0, F,
                        )  # fmt: skip
                    if not FIXED:
                        g = g - hat * along[:, None]
                        if CENTER:
                            g = g - plain[:, None]
                    g = tl.where(real, g * scale[:, None], 0.0)
                    if dsum is not None:
                        g = g + tl.load(dsum + off, mask=inside, other=0.0).to(F)
                    tl.store(dx + off, g, mask=inside)
    if WALK == 0 and not PER_CELL:
        row = tl.program_id(0)
        if KIND == 2:
            place = tl.arange(0, BR0)
            keep(features, half, row * R0 + place, place < R0, w_all, b_all)
        if KIND == 3:
            place = tl.arange(0, BR1)
            keep(features, half, row * R1 + place, place < R1, w_all, b_all)


@triton.jit(do_not_specialize=["others", "SHARE", "half"])
def feature_sums(
    dy, x, mask, mean_in, std_in, weight, bias, features,
    period, inner, others, SHARE, inside_k0, K1, R1, channels, places, half,
    EPS: tl.constexpr, ACT: tl.constexpr, MASK: tl.constexpr, BF: tl.constexpr, BO: tl.constexpr,
    BIG: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """The gradients of weight and bias alone, whatever the region: element (a, feature, i) is at (a * period + feature)
    * inner + i, and its cell follows from that offset."""
    feature = tl.program_id(0) * BF + tl.arange(0, BF)
    is_feature = feature < period
    part = tl.program_id(1)
    w = tl.zeros([BF], F)
    b = tl.zeros([BF], F)
    if weight is not None:
        scaled = tl.load(weight + feature, mask=is_feature, other=0.0)
    if bias is not None:
        moved = tl.load(bias + feature, mask=is_feature, other=0.0)
    start = part
    if BIG:
        start = start.to(tl.int64)
    start = start * SHARE
    for at in range(start, tl.minimum(start + SHARE, others), BO):
        other = at + tl.arange(0, BO)
        there = is_feature[:, None] & (other < tl.minimum(start + SHARE, others))[None, :]
        off = ((other // inner * period)[None, :] + feature[:, None]) * inner + (other % inner)[None, :]
        cell = off // inside_k0 * K1 + off // R1 % K1
        real = there
        if MASK != 0:
            real = there & (
                tl.load(mask + off // (channels * places) * places + off % places, mask=there, other=0) != 0
            )
        s = tl.load(std_in + cell, mask=there, other=1.0)
        v = tl.where(real, tl.load(x + off, mask=there, other=0.0).to(F), 0.0)
        if mean_in is not None:
            v = v - tl.load(mean_in + cell, mask=there, other=0.0)
        hat = tl.where(real, v * inverse(root(s * s + EPS)), 0.0)
        d = tl.where(real, tl.load(dy + off, mask=there, other=0.0).to(F), 0.0)
        if ACT != 0:
            z = hat
            if weight is not None:
                z = z * scaled[:, None]
            if bias is not None:
                z = z + moved[:, None]
            d = d * slope(z, ACT)
        w += tl.sum(d * hat, 1)
        b += tl.sum(d, 1)
    keep(features, half, part * period + feature, is_feature, w, b)
