"""What is timed: methods x shapes x layouts x dtypes x passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

IMAGES = ((16, 64, 32, 32), (32, 64, 56, 56), (32, 256, 14, 14), (8, 3, 224, 224))
TOKENS = ((2048, 512), (8192, 768), (4096, 2048))
LAYOUTS = ("contiguous", "channels_last")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OF_IMAGES = ("batch_norm", "batch_norm_eval", "instance_norm", "group_norm", "layer_norm2d", "layer_norm_image")
OF_TOKENS = ("layer_norm", "rms_norm", "batch_norm")


@dataclass(frozen=True)
class Cell:
    """One thing to time."""

    method: str
    shape: tuple[int, ...]
    layout: str
    dtype: torch.dtype
    backward: bool

    @property
    def name(self) -> str:
        what = "forward+backward" if self.backward else "forward"
        return f"{self.method} {list(self.shape)} {self.layout} {str(self.dtype)[6:]} {what}"

    @property
    def bytes(self) -> int:
        """What must move at least: forward reads x and writes y; backward reads dy and x and writes dx."""
        size = torch.Size(self.shape).numel() * self.dtype.itemsize
        return size * (5 if self.backward else 2)

    def tensor(self) -> torch.Tensor:
        """Random values in the cell's shape, layout and dtype."""
        x = torch.randn(self.shape).to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.layout == "channels_last" else x


def cells(least: int = 1 << 20) -> Iterator[Cell]:
    """All cells of at least so many elements."""
    for dtype in DTYPES:
        for backward in (False, True):
            for shape in IMAGES:
                for method in OF_IMAGES:
                    for layout in LAYOUTS:
                        if torch.Size(shape).numel() >= least:
                            yield Cell(method, shape, layout, dtype, backward)
            for shape in TOKENS:
                for method in OF_TOKENS:
                    if torch.Size(shape).numel() >= least:
                        yield Cell(method, shape, "contiguous", dtype, backward)
