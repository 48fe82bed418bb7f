"""What launches share: a mask as kernels take it, and how moments and sums of parts are merged."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from normkit.kernels.backend import Mask
from normkit.kernels.triton.arguments import MaskIndex, MaskIndexing
from normkit.kernels.triton.passes import Pass
from normkit.kernels.triton.schedule import Schedule

MERGED = 4096
"""Moments or sums of parts in a tile that merges them: 32 for each thread. A guess, too."""


class MaskArguments(NamedTuple):
    pointer: Tensor | None
    places: MaskIndex | None
    indexing: int


NO_MASK = MaskArguments(None, None, int(MaskIndexing.NONE))


def mask_arguments(mask: Mask | None, s: Schedule) -> MaskArguments:
    """A mask as kernels take it."""
    if mask is None:
        return NO_MASK
    index = s.mask_index(mask.channels, mask.inner)
    indexing = MaskIndexing.AXES
    if index is None:
        indexing = MaskIndexing.OFFSET
        index = MaskIndex(1, 0, 1, 0, 0, 0, mask.channels, mask.inner)
    return MaskArguments(mask.valid.view(torch.uint8), index, int(indexing))


def merging(p: Pass, cells: int) -> tuple[tuple[int, int, int], int, int, int]:
    """Grid of a kernel that merges parts; the columns of a cell, and cells and parts in a tile."""
    columns = p.tile.used_columns
    sets = 1 << (p.parts * columns - 1).bit_length()
    together = max(1, min(MERGED // sets, 16))
    return (-(-cells // together), 1, 1), columns, together, sets


def or_none(t: Tensor | None) -> Tensor | None:
    return None if t is None or t.numel() == 0 else t
