"""The benchmark cells: methods x shapes x layouts x dtypes x passes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from normkit.catalog import Method, find

# By where a tensor of this shape fits; the smallest are timed through layers, because there the call takes the time.
IMAGES = {
    "overhead": ((2, 16, 8, 8), (4, 32, 16, 16)),
    "L2": ((8, 32, 32, 32),),
    "L3": ((32, 256, 14, 14), (8, 3, 224, 224)),
    "memory": ((32, 64, 56, 56), (32, 64, 112, 112)),
}
TOKENS = {
    "overhead": ((4, 16), (64, 128)),
    "L2": ((256, 256),),
    "L3": ((2048, 512),),
    "memory": ((8192, 768), (16384, 2048)),
}
WEIGHTS = {"weights": ((64, 3, 7, 7), (256, 256, 3, 3), (512, 2048), (4096, 4096))}
OF_IMAGES = ("batch_norm", "batch_norm_eval", "instance_norm", "group_norm", "layer_norm2d", "layer_norm_image")
VARIANTS = {"batch_norm_eval": "batch_norm", "layer_norm_image": "layer_norm"}
OF_TOKENS = ("layer_norm", "rms_norm", "batch_norm")
# Without the spectral norm, which has no region: its time is that of products of matrices.
OF_WEIGHTS = ("weight_norm", "weight_standardization")
DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("contiguous", "channels_last")
# These are compared with the speed of a copy, because nothing of them stays in a cache from one call to the next.
AT_THE_LIMIT = ((32, 64, 112, 112), (16384, 2048))


@dataclass(frozen=True)
class Cell:
    """One case to time."""

    method: str
    shape: tuple[int, ...]
    layout: str
    dtype: str
    backward: bool
    size: str

    @property
    def name(self) -> str:
        what = "forward+backward" if self.backward else "forward"
        return f"{self.method} {list(self.shape)} {self.layout} {self.dtype} {what}"

    @property
    def row(self) -> Method:
        """Of the catalog; some methods are timed in two ways."""
        return find(VARIANTS.get(self.method, self.method))

    @property
    def eps(self) -> float:
        """As by default; of RMS norm, whose default depends on the dtype, what most models have."""
        return 1e-6 if self.row.eps is None else self.row.eps

    @property
    def channels(self) -> int:
        """Of an activation."""
        return self.shape[1]

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def at_the_limit(self) -> bool:
        return self.shape in AT_THE_LIMIT

    @property
    def units(self) -> int:
        """Passes of memory over a tensor: forward reads x and writes y; backward reads dy and x, writes dx.

        Moments of a channel that no cache holds between its two uses cost one more pass forward; backward one more
        over x and one over dy.
        """
        again = self.method == "batch_norm" and self.layout == "contiguous" and self.at_the_limit
        return (8 if again else 5) if self.backward else (3 if again else 2)

    @property
    def bytes(self) -> int:
        """The bytes of one tensor."""
        return self.elements * self.torch_dtype.itemsize

    def tensor(self) -> Tensor:
        """Random values in the cell's shape, layout and dtype."""
        x = torch.randn(self.shape).to(self.torch_dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.layout == "channels_last" else x


def cells() -> Iterator[Cell]:
    """All cells, small shapes first; shapes of layer calls only in float32."""
    for shapes, methods in ((IMAGES, OF_IMAGES), (TOKENS, OF_TOKENS), (WEIGHTS, OF_WEIGHTS)):
        layouts = LAYOUTS if shapes is IMAGES else LAYOUTS[:1]
        for size, some in shapes.items():
            for shape in some:
                for method in methods:
                    for layout in layouts:
                        for dtype in DTYPES[:1] if size == "overhead" else DTYPES:
                            for backward in (False, True):
                                yield Cell(method, shape, layout, dtype, backward, size)
