"""What all kernels share: where a tile's elements, weights and mask lie, moments and their merging, activations."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def columns_of(
    block, K, C: tl.constexpr, sk0, sk, cdiv, cmod, cmult,
    BK: tl.constexpr, BC: tl.constexpr, ALONG: tl.constexpr, BIG: tl.constexpr,
):  # fmt: skip
    """The columns of a block: each one's cell, place in it and offset, first weight, and whether it is there."""
    if BIG:
        block = tl.full([], 0, tl.int64) + block
    across = tl.cdiv(K, BK)
    k0 = block // across
    column = tl.arange(0, BK * BC)
    k = block % across * BK + column // BC
    c = column % BC
    cell = k0 * K + k
    first = cell // cdiv % cmod * cmult
    if ALONG == 5:
        first += c
    if C == BC and BC > 1:
        # Said so that the compiler sees that columns are neighbours.
        return cell, c, k < K, k0 * sk0 + block % across * (BK * BC) + column, first
    else:
        return cell, c, (k < K) & (c < C), k0 * sk0 + k * sk + c, first


@triton.jit
def over_cell(columns, BK: tl.constexpr, BC: tl.constexpr):
    """The sum of a cell's columns, for each of them."""
    if BC == 1:
        return columns
    else:
        total = tl.sum(tl.reshape(columns, [BK, BC]), 1)
        return tl.reshape(tl.broadcast_to(total[:, None], [BK, BC]), [BK * BC])


@triton.jit
def tile_of(base, there, at0, end0, at1, end1, sr0, BR0: tl.constexpr, BR1: tl.constexpr, BIG: tl.constexpr):
    """A tile's places along r0 and r1, its offsets, and which of its elements there are."""
    row = tl.arange(0, BR0 * BR1)
    r0 = at0 + row // BR1
    r1 = at1 + row % BR1
    if BIG:
        r0 = r0.to(tl.int64)
    inside = there[:, None] & ((r0 < end0) & (r1 < end1))[None, :]
    return r0, r1, base[:, None] + (r0 * sr0 + r1)[None, :], inside


@triton.jit
def parameter(
    pointer, off, inside, first, there, at0, r0, r1, rmult, period, inner, ALONG: tl.constexpr, BR0: tl.constexpr
):
    """The weights of a tile, or one for each of its columns."""
    if ALONG == 4:
        return tl.load(pointer + off // inner % period, mask=inside, other=0.0)
    elif ALONG == 2 and BR0 == 1:
        return tl.load(pointer + first + at0 * rmult, mask=there, other=0.0)[:, None]
    elif ALONG == 2:
        return tl.load(pointer + first[:, None] + (r0 * rmult)[None, :], mask=inside, other=0.0)
    elif ALONG == 3:
        return tl.load(pointer + first[:, None] + r1[None, :], mask=inside, other=0.0)
    else:
        return tl.load(pointer + first, mask=there, other=0.0)[:, None]


@triton.jit
def real_of(mask_pointer, off, inside, cell, c, r0, r1, d0, m0, d1, m1, mr0, mr1, channels, places, MASK: tl.constexpr):
    """Which elements of a tile are neither padding nor beyond its end."""
    if MASK == 0:
        return inside
    elif MASK == 1:
        at = (cell // d0 * m0 + cell % d1 * m1 + c * mr1)[:, None] + (r0 * mr0 + r1 * mr1)[None, :]
        return inside & (tl.load(mask_pointer + at, mask=inside, other=0) != 0)
    else:
        at = off // (channels * places) * places + off % places
        return inside & (tl.load(mask_pointer + at, mask=inside, other=0) != 0)


@triton.jit
def root(value):
    """Of fp32 rounded as it should be; that of fp64 always is."""
    if value.dtype == tl.float32:
        return tl.sqrt_rn(value)
    else:
        return tl.sqrt(value)


@triton.jit
def inverse(value):
    if value.dtype == tl.float32:
        return tl.div_rn(1.0, value)
    else:
        return 1.0 / value


@triton.jit
def tile_moments(value, real, n, CENTER: tl.constexpr):
    """Mean, what its rounding left over, and sum of squares about it, for each column; 0 where nothing is real."""
    if CENTER:
        mean = tl.sum(value, 1) / n
        apart = tl.where(real, value - mean[:, None], 0.0)
        rest = tl.sum(apart, 1) / n
        apart = tl.where(real, apart - rest[:, None], 0.0)
        return mean, rest, tl.sum(apart * apart, 1)
    else:
        zero = tl.sum(value, 1) * 0.0
        return zero, zero, tl.sum(value * value, 1)


@triton.jit
def merged(n, mean, rest, square, n_b, mean_b, rest_b, square_b, CENTER: tl.constexpr):
    """Chan's formula for two parts, the mean in two pieces so that many merges lose nothing of it."""
    total = n + n_b
    if CENTER:
        share = n_b / tl.maximum(total, 1.0)
        apart = (mean_b - mean) + (rest_b - rest)
        step = rest + apart * share
        new = mean + step
        taken = new - mean
        left = (mean - (new - taken)) + (step - taken)
        return total, new, left, square + square_b + apart * apart * (n * share)
    else:
        return total, mean, rest, square + square_b


@triton.jit
def joined(n, mean, rest, square, BK: tl.constexpr, BC: tl.constexpr, CENTER: tl.constexpr):
    """The moments of cells out of those of their columns, in two passes."""
    if BC == 1:
        return n, mean, rest, square
    else:
        total = over_cell(n, BK, BC)
        if CENTER:
            share = n / tl.maximum(total, 1.0)
            middle = over_cell(mean * share, BK, BC)
            left = over_cell(((mean - middle) + rest) * share, BK, BC)
            apart = ((mean - middle) + rest) - left
            return total, middle, left, over_cell(square + apart * apart * n, BK, BC)
        else:
            return total, mean, rest, over_cell(square, BK, BC)


@triton.jit
def gauss(z):
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def tanh(z):
    """By the exponential, and near 0, where that would cancel, by its series."""
    e = tl.exp(-2.0 * tl.abs(z))
    far = (1.0 - e) / (1.0 + e)
    far = tl.where(z < 0, -far, far)
    s = tl.minimum(z * z, 0.01)
    near = s * (17.0 / 315.0 - s * (62.0 / 2835.0 - s * (1382.0 / 155925.0 - s * (21844.0 / 6081075.0))))
    near = z * (1.0 - s * (1.0 / 3.0 - s * (2.0 / 15.0 - near)))
    return tl.where(tl.abs(z) < 0.1, near, far)


@triton.jit
def sigmoid(z):
    e = tl.exp(-tl.abs(z))
    return tl.where(z < 0, e, 1.0) / (1.0 + e)


@triton.jit
def activated(z, ACT: tl.constexpr):
    """By its number in `normkit.kernels.formula.ACTIVATIONS`."""
    if ACT == 1:
        return tl.where(z <= 0, 0.0, z)
    elif ACT == 2:
        return tl.where(z < 0, 0.01 * z, z)
    elif ACT == 3:
        return z * sigmoid(z)
    elif ACT == 4:
        return z * gauss(z)
    elif ACT == 5:
        return 0.5 * z * (1.0 + tanh(0.7978845608028654 * (z + 0.044715 * z * z * z)))
    elif ACT == 6:
        return sigmoid(z)
    elif ACT == 7:
        return tanh(z)
    else:
        return z


@triton.jit
def slope(z, ACT: tl.constexpr):
    """The derivative of `activated`."""
    if ACT == 1:
        return tl.where(z <= 0, 0.0, 1.0)
    elif ACT == 2:
        return tl.where(z <= 0, z * 0.0 + 0.01, 1.0)
    elif ACT == 3:
        s = sigmoid(z)
        return s * (1.0 + z * (1.0 - s))
    elif ACT == 4:
        return gauss(z) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    elif ACT == 5:
        t = tanh(0.7978845608028654 * (z + 0.044715 * z * z * z))
        inside = 0.7978845608028654 * (1.0 + 0.134145 * z * z)
        return 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * inside
    elif ACT == 6:
        s = sigmoid(z)
        return s * (1.0 - s)
    elif ACT == 7:
        t = tanh(z)
        return 1.0 - t * t
    else:
        return z * 0.0 + 1.0
