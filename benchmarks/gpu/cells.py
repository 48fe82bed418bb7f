"""The memory-sized cells: tensors that no cache holds, every method in both layouts, forward and with backward."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from benchmarks.speed.workloads import Cell

IMAGES = ((32, 64, 112, 112), (64, 256, 56, 56))
SMALL_IMAGES = ((128, 512, 14, 14),)
ROWS = ((16384, 2048), (8192, 8192), (2048, 32768))
TINY_IMAGES, TINY_ROWS = ((2, 32, 6, 6),), ((4, 64),)
"""For a dry run."""
OF_IMAGES = ("batch_norm", "group_norm", "instance_norm", "layer_norm2d")
OF_ROWS = ("rms_norm", "layer_norm")
SAMPLE = (
    "batch_norm [64, 256, 56, 56] channels_last bfloat16 forward+backward",
    "batch_norm [64, 256, 56, 56] contiguous bfloat16 forward+backward",
    "batch_norm [32, 64, 112, 112] channels_last bfloat16 forward",
    "group_norm [64, 256, 56, 56] contiguous bfloat16 forward+backward",
    "group_norm [64, 256, 56, 56] channels_last bfloat16 forward",
    "instance_norm [64, 256, 56, 56] channels_last bfloat16 forward+backward",
    "instance_norm [32, 64, 112, 112] contiguous bfloat16 forward",
    "layer_norm2d [64, 256, 56, 56] contiguous bfloat16 forward+backward",
    "rms_norm [16384, 2048] contiguous bfloat16 forward+backward",
    "rms_norm [2048, 32768] contiguous bfloat16 forward+backward",
    "layer_norm [8192, 8192] contiguous bfloat16 forward+backward",
    "layer_norm [16384, 2048] contiguous bfloat16 forward",
)
"""A dozen cells that between them take every walk of the kernels."""


def cells(dtypes: Sequence[str] = ("bfloat16",), small: bool = False, tiny: bool = False) -> Iterator[Cell]:
    """The 44 cells for each dtype; `small` adds 16 of [128, 512, 14, 14], `tiny` gives other shapes, for a dry run."""
    images = TINY_IMAGES if tiny else IMAGES + (SMALL_IMAGES if small else ())
    shapes = [
        *itertools.product(OF_IMAGES, images, ("contiguous", "channels_last")),
        *itertools.product(OF_ROWS, TINY_ROWS if tiny else ROWS, ("contiguous",)),
    ]
    for dtype, (method, shape, layout), backward in itertools.product(dtypes, shapes, (False, True)):
        yield Cell(method, shape, layout, dtype, backward, "memory")


def units(cell: Cell) -> int:
    """Tensors read or written where no cache keeps one: forward reads x and writes y; backward reads dy, x, writes dx.

    The moments of a channel of batch norm come from all over the tensor, so x is read twice forward, and dy and x
    twice backward. A region of the other methods fits on the chip between its two uses.
    """
    if cell.method == "batch_norm":
        return 8 if cell.backward else 3
    return 5 if cell.backward else 2
