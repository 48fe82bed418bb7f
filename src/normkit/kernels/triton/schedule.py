"""How a plan is carried out on a GPU: which elements a program takes, how often it walks, who adds what up.

A plan's K R K R view becomes axes with a stride each: ``k0`` (one program each), ``k`` (a tile holds `bk` of them), and
the two reduced ones, ``r0`` and ``r1``, of which a tile holds ``br0 x br1``. Where cells lie between one another and
their neighbours in memory are few, these are ``c`` columns of the cell in place of r1, so that threads read along
memory. Pure arithmetic, no Triton.

The size of a tile and the number of parts a region is cut into follow from the region alone, never from how many
regions there are: so the bits of a sample's output do not depend on the batch that it is in.

>>> print(schedule((32, 64, 1, 12544), 64, 12544))      # GroupNorm(1) of [32, 64, 112, 112]
region 64 x 12544, tile 1 x 1 x 2048, cut into 22 x 1, 4 warps
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

WHOLE = 16384
"""Elements of a tile at most: a region that fits is read once and stays in registers."""
CHUNK = 4096
"""Elements of a tile when a region is walked."""
NEAR, NEAR_APART = 131072, 32768
"""Elements that one program walks twice, the second time out of the cache; with other cells between them, fewer."""
SHARE = 32768
"""Elements of a program's share where several programs share a region."""
PARTS = 256
"""Of a region at most."""
RUN = 32
"""Neighbours that a tile should hold at least, for whole lines of memory."""


class Walk(IntEnum):
    """Where the moments of a region come from."""

    WHOLE = 0
    TWICE = 1
    PARTS = 2
    GIVEN = 3


class Features(IntEnum):
    """Where weights change within a cell, and so what their gradients are sums over."""

    NONE = 0
    CELL = 1
    R0 = 2
    R1 = 3
    APART = 4
    COLUMN = 5


@dataclass(frozen=True)
class Schedule:
    """One plan, ready for launches.

    Attributes:
        k0, k, c, r0, r1: sizes; sk0, sk, sr0: strides, those of c and r1 are 1.
        bk, bc, br0, br1: sizes of a tile.
        walk: where moments come from, if they are not given.
        p0, p1: how much of r0 and r1 a part is; s0, s1: how many parts.
        cdiv, cmod, cmult, rmult: the weight of an element is ``cell // cdiv % cmod * cmult``, plus ``r0 * rmult`` or
            ``r1`` or ``c`` where these axes hold features.
        along: which of them does, APART where the weight follows from the offset alone, by division.
        features: how the gradients of weights are added up.
        period, inner: as in the plan.
        warps: of a program.
        view: of the plan.
    """

    k0: int
    k: int
    c: int
    r0: int
    r1: int
    sk0: int
    sk: int
    sr0: int
    bk: int
    bc: int
    br0: int
    br1: int
    walk: Walk
    p0: int
    p1: int
    s0: int
    s1: int
    cdiv: int
    cmod: int
    cmult: int
    rmult: int
    along: Features
    features: Features
    period: int
    inner: int
    warps: int
    view: tuple[int, int, int, int]

    @property
    def count(self) -> int:
        """Elements of a region."""
        return self.c * self.r0 * self.r1

    @property
    def cells(self) -> int:
        """Regions."""
        return self.k0 * self.k

    @property
    def columns(self) -> int:
        """What is added up for itself."""
        return self.cells * self.c

    @property
    def numel(self) -> int:
        return self.cells * self.count

    @property
    def parts(self) -> int:
        return self.s0 * self.s1

    @property
    def blocks(self) -> int:
        """Tiles side by side."""
        return self.k0 * _cut(self.k, self.bk)

    def __str__(self) -> str:
        walk = {
            Walk.WHOLE: "read once",
            Walk.TWICE: "walked twice",
            Walk.PARTS: f"cut into {self.s0} x {self.s1}",
            Walk.GIVEN: "moments given",
        }[self.walk]
        tile = f"{self.bk * self.bc} x {self.br0} x {self.br1}"
        return f"region {self.r0} x {self.c * self.r1}, tile {tile}, {walk}, {self.warps} warps"

    def mask(self, channels: int, inner: int) -> tuple[int, ...] | None:
        """Where an element's byte of a mask is, which has one for all channels of a place.

        Returns:
            (d0, m0, d1, m1, mr0, mr1): at ``cell // d0 * m0 + cell % d1 * m1 + r0 * mr0 + r1 * mr1``; None where only
            a division of the offset tells.
        """

        def level(size: int, stride: int) -> tuple[int, int, int, int]:
            if size == 1 or (inner <= stride and stride * size <= channels * inner):
                return 1, 0, 1, 0
            if stride >= channels * inner:
                return 1, stride // channels, 1, 0
            if stride * size <= inner:
                return 1, stride, 1, 0
            return channels * inner // stride, inner, max(1, inner // stride), stride if stride < inner else 0

        axes = ((self.k0, self.sk0), (self.k, self.sk), (self.r0, self.sr0), (self.c * self.r1, 1))
        outer, cell, *rows = (level(size, stride) for size, stride in axes)
        if any(d0 != 1 for d0, *_ in rows):
            return None
        factors = (rows[0][1], rows[1][1])
        if self.k == 1 or self.k0 == 1:
            return (*(outer if self.k == 1 else cell), *factors)
        if outer[0] != 1 or cell[0] != 1:
            return None
        return self.k, outer[1], self.k, cell[1], *factors


def _cut(size: int, piece: int) -> int:
    return -(-size // piece)


def _power(size: int) -> int:
    """The next power of two."""
    return 1 << max(0, size - 1).bit_length()


def schedule(view: tuple[int, int, int, int], period: int, inner: int, chunk: int = CHUNK) -> Schedule:
    """The schedule of a plan with these numbers (`normkit.plan.Plan`); `chunk` for tiles of another size."""
    k0, r0, k, r1 = view
    if k == 1:
        # A region in one piece: cut where the weights change.
        n = r0 * r1
        k0, k = 1, k0
        if inner >= n:
            r0, r1 = 1, n
        elif period * inner >= n:
            r0, r1 = (1, n) if inner == 1 else (n // inner, inner)
        else:
            r0, r1 = n // (period * inner), period * inner
        sk0, sk, sr0 = n, n, r1
    else:
        sk0, sk, sr0 = r0 * k * r1, r1, k * r1
    along, index = _along((k0, sk0), (k, sk), (r0, sr0), (r1, 1), period, inner)
    c, n, apart = 1, r0 * r1, sk < r0 * r1
    if apart and 1 < r1 < RUN:
        c, r1 = r1, 1
        along = Features.COLUMN if along is Features.R1 else along

    p0, p1, bc = _power(r0), _power(r1), _power(c)
    # Cells that lie between one another are read side by side, for whole lines of memory.
    beside = min(_power(k), max(1, RUN // (bc * r1))) if apart else 1
    if beside * bc * p0 * p1 <= WHOLE:
        br0, br1, walk = p0, p1, Walk.WHOLE
        bk = max(beside, 1024 // (bc * br0 * br1))
        bk = min(bk, _power(k)) if apart else bk
    else:
        bk = beside
        most = chunk // (bk * bc)
        br1 = min(p1, most) if p1 <= most else _least_waste(r1, most)
        br0 = 1 if br1 >= chunk // 8 else min(p0, most // br1)
        walk = Walk.TWICE if bk * n <= (NEAR_APART if apart else NEAR) else Walk.PARTS
    features = along
    if along is Features.COLUMN:
        features = Features.CELL
    elif (along is Features.R1 and br1 < r1) or (along is Features.R0 and c > 1):
        features = Features.APART
    s0, s1, q0, q1 = 1, 1, r0, r1
    if walk is Walk.PARTS:
        # Every program reads what all parts have found, so their number stays below the root of a region's size.
        parts = max(1, min(PARTS, _cut(bk * n, SHARE), math.isqrt(n // 30)))
        s0 = min(parts, _cut(r0, br0))
        s1 = min(_cut(parts, s0), _cut(r1, br1))
        q0, q1 = _cut(_cut(r0, br0), s0) * br0, _cut(_cut(r1, br1), s1) * br1
        s0, s1 = _cut(r0, q0), _cut(r1, q1)
    warps = max(1, min(16, bk * bc * br0 * br1 // 512))
    return Schedule(
        k0, k, c, r0, r1, sk0, sk, sr0, bk, bc, br0, br1, walk, q0, q1, s0, s1,
        *index, along, features, period, inner, warps, view,
    )  # fmt: skip


def _least_waste(size: int, most: int) -> int:
    """The power of two, up to `most`, whose multiples cover `size` best; large ones where several do."""
    return min((most, most // 2), key=lambda piece: (round(_cut(size, piece) * piece / size, 1), -piece))


def _along(
    outer: tuple[int, int],
    cell: tuple[int, int],
    row: tuple[int, int],
    last: tuple[int, int],
    period: int,
    inner: int,
) -> tuple[Features, tuple[int, int, int, int]]:
    """Which axes, each (size, stride), the weights go along, and (cdiv, cmod, cmult, rmult)."""

    def part(size: int, stride: int) -> tuple[int, int, int] | None:
        """(elements of the axis inside one weight, weights along it, how far apart); None for no weights."""
        if size == 1 or stride * size <= inner or stride >= period * inner:
            return None
        return (
            max(1, inner // stride),
            min(period * inner, stride * size) // max(inner, stride),
            max(1, stride // inner),
        )

    def is_pure(size: int, stride: int) -> bool:
        return inner <= stride and stride * size <= period * inner

    k0, k, r0, r1 = (part(*axis) for axis in (outer, cell, row, last))
    mixed = any(found is not None and not is_pure(*axis) for found, axis in ((r0, row), (r1, last)))
    of_cell = k or k0
    if mixed or (k0 and k) or (r0 and r1):
        return Features.APART, (1, 1, 0, 0)
    cdiv, cmod, cmult = of_cell or (1, 1, 1)
    if k0:
        cdiv *= cell[0]
    if not r0 and not r1:
        return Features.CELL, (cdiv, cmod, cmult, 0)
    size, rmult = (row[0], r0[2]) if r0 else (last[0], 0)
    if of_cell and (of_cell[0] != 1 or cmult != size or rmult > 1):
        return Features.APART, (1, 1, 0, 0)
    return Features.R0 if r0 else Features.R1, (cdiv, cmod, cmult, rmult)
