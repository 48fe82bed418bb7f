"""The passes over a tensor: which elements a program of a kernel takes, and how often it reads them.

Each threshold says where it comes from. "H200" is one NVIDIA H200 with torch 2.11, Triton 3.6 and bfloat16, its cache
emptied before each call. A figure such as .92 is the time to copy the same tensors divided by the time of the call. All
of them were measured with a prototype of these kernels; these themselves have not run on a GPU yet.

Pure arithmetic, no Triton.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from normkit.kernels.triton.arguments import Along, Axes, Tile, Walk

WHOLE = 16384
"""Elements of the largest tile; a region that fits is read once and stays in registers.

At 16 warps these are 32 registers a thread for x, and 32 for dy in the backward pass, of the 128 that such a program
has on NVIDIA's GPUs. On the H200, InstanceNorm of regions of 12,544 elements took 33 us this way, torch.compile 40.
"""
WHOLE_WEIGHTS = 8192
"""The same for the backward pass of rows with a weight for each element: a thread also holds the sums for 16 weights.
On the H200, rows of 8192 took 137 us with 16 warps, quack-kernels 136."""
WHOLE_STRIDED = 2048
"""The same for many cells that lie side by side (at least `MANY`), such as the positions of a contiguous image under
LayerNorm2d. On the H200, two walks over 64 and 256 channels were fastest."""
MANY = 1024
CHUNK = 4096
"""Elements of a tile of a contiguous region that is walked twice, or of a tile that is only normalized.

On the H200, with 8 warps: .92 forward, .95 backward. GroupNorm took 38 us with tiles of 4096, with segments of 12,544
elements, and 73 us with tiles of 2048, with segments of 3136; torch.compile took 60 and 110.
"""
NEAR = 65536
"""Elements of a region that one program walks twice, the second time out of the cache. On the H200, two walks over
rows of 32,768 took 79 us; in parts they would be read twice from memory, which takes 96 at the bandwidth of a copy. The
limit is a guess: 264 such programs read 35 MB in bfloat16, and its cache has 50.
"""
LONG = 32768
"""Elements of a region from which on a program that walks it has 16 warps, not 8. On the H200, rows of 32,768 took
79 us with 16 warps, and the regions of GroupNorm above had 8."""
NEAR_BETWEEN, NEAR_MANY = 32768, 131072
"""The same for the elements of all cells of a tile that lie between one another, the second where there are `MANY`.
Guesses that no GPU has measured."""
SHARE = 24576
"""Elements of a part. On the H200, eight to sixteen programs of 4 warps for each of 132 multiprocessors were fastest;
with this size, 26 million elements make 1045 programs, and 51 million 2090."""
MOST_SETS = 4096
"""Moments that are merged to those of one cell, in one tile: about so many parts times columns at most."""
TOGETHER, ENOUGH = 4, 2048
"""Tiles of flat columns that one program normalizes, if there are so many programs even then. A guess, by counting
instructions: roots and quotients for each column are a third of those for a tile."""
LANES = 64
"""Columns side by side: 64 bfloat16 are 128 bytes, a line of NVIDIA's caches."""
SEGMENT = 256
"""A part takes r1 in pieces of this size, if cells lie between one another; shorter r1 are flat columns. 64 threads
read such a piece of float32 in words of 16 bytes. A guess that no GPU has measured."""
SMALLEST = 4096
"""Elements of a tile of rows, 32 for each of 128 threads. On the H200, rows of 2048 took 37 us one at a time and 39 two
at a time."""
MOST_CELLS = 128
"""Cells of such a tile at most, and a quarter of the elements where no words of 8 bytes can be read: a thread has few
registers for more. A guess, with the compiler's report: instance norm of 7 x 7 positions spilled registers."""
WORDS, WORDS_BACKWARD, WORDS_GATED = 4, 2, 1
"""Words of 16 bytes that a thread takes of a tile: of x; of both x and dy; of each of these and of a gate or a skip. On
the H200, with bfloat16, rows of 8192 were fastest with 8 warps forward, and with 16 backward. The last is a guess, with
the compiler's report: two words of each spilled registers."""
FEWEST_WARPS, MOST_WARPS = 4, 16
"""Warps of a program: with 16, a thread has up to 128 registers on NVIDIA's GPUs, with 32 only 64."""
FAR = 2**31
"""Offsets have 64 bits for tensors of this size, which exceeds the range of a signed 32-bit number."""


class Axis(NamedTuple):
    size: int
    stride: int


class Gaps(NamedTuple):
    """Where the rows of x begin: row r at ``r // group * outer + r % group * pitch``; without gaps, if group is 0."""

    group: int = 0
    pitch: int = 0
    outer: int = 0


NO_GAPS = Gaps()


@dataclass(frozen=True)
class Pass:
    """How one kernel goes over a tensor.

    Attributes:
        walk: where moments come from.
        along: the axis along which weights vary.
        tile, axes: what kernels are called with.
        parts_r0: number of parts along r0.
        warps: of a program.
        blocks: tiles side by side.
        k1: number of inner cells.
    """

    walk: Walk
    along: Along
    tile: Tile
    axes: Axes
    parts_r0: int
    warps: int
    blocks: int
    k1: int

    @property
    def parts(self) -> int:
        """Of each region."""
        return self.axes.parts

    @cached_property
    def grid(self) -> tuple[int, int, int]:
        return self.blocks * self.parts, 1, 1

    def __str__(self) -> str:
        return f"{self.tile.k1 * self.tile.columns} x {self.tile.r0} x {self.tile.r1}"


@dataclass(frozen=True)
class Passes:
    """Makes the passes of a schedule; `vector` elements are a word of 16 bytes, the largest that a thread reads.

    With `transposed` the numbers of cells go along k0 first.
    """

    k0: Axis
    k1: Axis
    r0: Axis
    r1: Axis
    along: Along
    vector: int
    chunk: int
    gaps: Gaps = NO_GAPS
    transposed: bool = False

    @property
    def count(self) -> int:
        return self.r0.size * self.r1.size

    @property
    def between(self) -> bool:
        """Whether cells lie between one another."""
        return self.k1.stride < self.count

    @property
    def width(self) -> int:
        """Columns side by side, where cells lie between one another."""
        return self.k1.size * self.r1.size

    # Whole regions --------------------------------------------------------------------------------------------

    def forward(self) -> Pass | None:
        walk, (k1, columns, r0, r1) = self._region(WHOLE)
        if walk is None:
            return None
        return self._made(walk, k1, columns, r0, r1, self._warps(walk, k1 * columns * r0 * r1, WORDS), 1)

    def backward(self, words: int = WORDS_BACKWARD) -> Pass | None:
        weights = self.along is Along.R1
        walk, (k1, columns, r0, r1) = self._region(WHOLE_WEIGHTS if weights else WHOLE)
        if walk is None or (weights and walk is Walk.TWICE):
            return None  # a walk in parts keeps the sums for the weights of a part
        if weights and not self.between:
            # Sums of several rows at once.
            k1 = max(1, 32 * MOST_WARPS * words * self.vector // (r0 * r1))
        return self._made(walk, k1, columns, r0, r1, self._warps(walk, k1 * columns * r0 * r1, words), 1)

    def _warps(self, walk: Walk, elements: int, words: int) -> int:
        """Warps of a program whose threads take so many words of a tile each."""
        if walk is Walk.TWICE and not self.between:
            return MOST_WARPS if self.count >= LONG else MOST_WARPS // 2
        wanted = max(elements // (32 * self.vector * words), min(FEWEST_WARPS, elements // 512))
        return max(1, min(MOST_WARPS, wanted))

    def features(self, backward: Pass | None) -> Along:
        """Where gradients of weights are added up: OFFSET where a tile does not hold the sums along their axis."""
        used = (backward or self.sums()).tile
        if self.along is Along.R1 and (used.flat or used.columns > 1):
            return Along.COLUMN
        return Along.OFFSET if self.along is Along.R0 and used.used_columns > 1 else self.along

    def _region(self, whole: int) -> tuple[Walk | None, tuple[int, int, int, int]]:
        """How often a region is read, and cells, columns, r0 and r1 of a tile; None if it has to be cut into parts."""
        r0, r1 = _power(self.r0.size), _power(self.r1.size)
        if not self.between:
            if r0 * r1 <= whole:
                size = SMALLEST if self.count % 4 == 0 else SMALLEST // 4
                return Walk.WHOLE, (max(1, min(MOST_CELLS, size // (r0 * r1))), 1, r0, r1)
            size = self.chunk if self.r1.size >= 2 * self.chunk else self.chunk // 2
            r1 = min(r1, size)
            near = self.count <= NEAR
            return Walk.TWICE if near else None, (1, 1, min(r0, size // r1), r1)
        # Cells that lie between one another are read side by side, for whole lines of memory.
        many = r1 == 1 and self.k1.size >= MANY
        columns, r1 = (r1, 1) if 1 < r1 < LANES else (1, r1)
        lanes = 2 * LANES if many and self.r0.size <= 2 * LANES else LANES
        k1 = min(_power(self.k1.size), max(1, lanes // (columns * r1)))
        side = k1 * columns
        # Segments of an odd number of elements would be read one element at a time; parts read them side by side.
        odd = r1 > 1 and self.r1.size % 4 != 0 and self._is_flat and self.r0.size >= LANES // 2
        if side * r0 * r1 <= (WHOLE_STRIDED if many else whole) and not odd:
            return Walk.WHOLE, (min(_power(self.k1.size), max(k1, 1024 // (columns * r0 * r1))), columns, r0, r1)
        # A walk along short rows that lie far apart reads no whole lines; parts do.
        near = r1 == 1 and side * self.r0.size <= (NEAR_MANY if many else NEAR_BETWEEN)
        most = self.chunk // 2 // side
        r1 = min(r1, most)
        return Walk.TWICE if near else None, (k1, columns, min(r0, max(1, most // r1)), r1)

    # Parts ----------------------------------------------------------------------------------------------------

    def parts(self) -> Pass:
        """Reduces parts to moments."""
        return self._reduced()

    def sums(self) -> Pass:
        """Reduces parts to sums, of two tensors at once."""
        if self.along is Along.R1 and not self._is_flat:
            # Every part has its own weights, and a program adds up what blocks of cells have in common.
            size = 32 * MOST_WARPS * WORDS_BACKWARD * self.vector
            r1 = min(_power(self.r1.size), self.chunk, size)
            r0 = min(_power(self.r0.size), max(1, size // 2 // r1))
            k1 = 1 if self.between else max(1, size // (r0 * r1))
            warps = self._warps(Walk.GIVEN, k1 * r0 * r1, WORDS_BACKWARD)
            return self._made(Walk.GIVEN, k1, 1, r0, r1, warps, self._number(1), one_piece=True)
        return self._reduced()

    @property
    def _is_flat(self) -> bool:
        return self.between and self.r1.size < SEGMENT

    def _reduced(self) -> Pass:
        """Four words for each thread, of which a lane takes one element of each if columns are flat."""
        if self._is_flat:
            lanes = min(_power(self.width), LANES)
            rows = min(_power(self.r0.size), max(1, 4 * 32 * FEWEST_WARPS * self.vector // lanes))
            return self._made(Walk.GIVEN, lanes, 1, rows, 1, FEWEST_WARPS, self._number(lanes), flat=True)
        r1 = min(_power(self.r1.size), SEGMENT if self.between else self.chunk // 2)
        r0 = min(_power(self.r0.size), max(1, self.chunk // 2 // r1))
        return self._made(Walk.GIVEN, 1, 1, r0, r1, FEWEST_WARPS, self._number(1))

    def _number(self, columns: int) -> int:
        """How many parts a region should have, if a tile has so many columns."""
        sets = self.r1.size if self._is_flat else 1
        count = columns * self.r0.size if self._is_flat else self.count
        return max(1, min(MOST_SETS // sets, _ceil(count, SHARE)))

    def apply(self) -> Pass:
        """Only normalizes, a tile or a few for each program. The result does not depend on how many."""
        if self._is_flat:
            lanes = min(_power(self.width), 2 * LANES)
            rows = min(_power(self.r0.size), self.chunk // 2 // lanes)
            # A few tiles share what they are scaled with, if programs enough are left.
            pieces = _ceil(self.r0.size, rows)
            many = self.k0.size * _ceil(self.width, lanes) * pieces >= ENOUGH * TOGETHER
            parts = _ceil(pieces, TOGETHER) if many else 0
            return self._made(Walk.GIVEN, lanes, 1, rows, 1, FEWEST_WARPS, parts, flat=True)
        r1 = _power(self.r1.size)
        r1 = r1 if r1 <= self.chunk else _least_waste(self.r1.size, self.chunk)
        r0 = min(_power(self.r0.size), self.chunk // r1)
        k1 = 1 if self.between else self.chunk // (r0 * r1)
        return self._made(Walk.GIVEN, k1, 1, r0, r1, self._warps(Walk.GIVEN, k1 * r0 * r1, 2), 0)

    def _made(
        self, walk: Walk, k1: int, columns: int, r0: int, r1: int, warps: int, parts: int,
        flat: bool = False, one_piece: bool = False,
    ) -> Pass:  # fmt: skip
        """A pass with this tile and about so many parts, 0 for one tile each.

        With `one_piece` a part has one tile along r1.
        """
        flat = flat or (self.between and self.r1.size == 1)
        used = self.r1.size if flat or columns > 1 else 1
        length = 1 if used > 1 or self.r1.size == 1 else self.r1.size
        strides = self.k0.stride, (0 if flat else self.k1.stride), self.r0.stride
        sizes = (self.width if self.between else 0, *strides, 0 if length == 1 else length)
        # Kernels multiply by it in 32 bits, if the numbers have no more.
        group, pitch, outer = self.gaps
        align = 1 if max(*sizes, outer) >= FAR // 2 else math.gcd(16, *sizes, 0 if r1 == 1 else r1, pitch, outer)
        pieces_r0, pieces_r1 = _ceil(self.r0.size, r0), _ceil(length, r1)
        parts_r0 = min(parts or pieces_r0, pieces_r0)
        parts_r1 = min(_ceil(parts, parts_r0) if parts and not one_piece else pieces_r1, pieces_r1)
        part_r0, part_r1 = _ceil(pieces_r0, parts_r0) * r0, _ceil(pieces_r1, parts_r1) * r1
        parts_r0, parts_r1 = _ceil(self.r0.size, part_r0), _ceil(length, part_r1)
        if r1 > 1:
            together = min(r0 * r1, self.vector, max(align, 4))
        else:
            together = max(1, min(r0, k1 * columns * r0 // (32 * warps * self.vector)))
        even = self.r0.size % r0 == 0 and length % r1 == 0
        wide = self.k0.size * self.k1.size * self.count >= FAR
        blocks = self.k0.size * _ceil(self.width if flat else self.k1.size, k1)
        width, *steps = [size // align for size in (self.width if self.between else 0, *strides)]
        return Pass(
            walk=walk,
            along=Along.COLUMN if used > 1 and self.along is Along.R1 else self.along,
            tile=Tile(
                k1, columns, r0, r1, used, flat, r1 > 1, together, even, align, wide, self.transposed, group > 0
            ),
            axes=Axes(
                self.r0.size, length // align, width, steps[0], steps[1], steps[2],
                part_r0, part_r1 // align, parts_r1, parts_r0 * parts_r1,
                self.k0.size if self.transposed else 0, group, pitch // align, outer // align,
            ),
            parts_r0=parts_r0,
            warps=warps,
            blocks=blocks,
            k1=self.k1.size,
        )  # fmt: skip


def _ceil(size: int, piece: int) -> int:
    return -(-size // piece)


def _power(size: int) -> int:
    """The next power of two."""
    return 1 << max(0, size - 1).bit_length()


def _least_waste(size: int, most: int) -> int:
    """`most` or half of it, both powers of two: the one whose multiples cover `size` better, else the larger."""
    return min((most, most // 2), key=lambda piece: (round(_ceil(size, piece) * piece / size, 1), -piece))
