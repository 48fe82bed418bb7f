"""Launches the kernel of rows in 8 bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normkit.kernels.formula import NUMBERS, Arguments
from normkit.kernels.triton import device
from normkit.kernels.triton.arguments import Along, ForwardFlags, MaskIndexing, Walk
from normkit.kernels.triton.code import quantized
from normkit.kernels.triton.device import aligned
from normkit.kernels.triton.passes import FAR, MOST_WARPS, SMALLEST, WHOLE


def quantize(
    a: Arguments, scale: Tensor | None, dtype: torch.dtype, scaling: str, group_size: int, /
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """Rows in 8 bits, their scales unless one is given, and the sum with a residual.

    None for rows too long for a tile, for groups that are no power of two, and for formats of 4 bits.
    """
    length = a.x.shape[-1]
    if length > WHOLE or scaling == "nvfp4" or group_size & (group_size - 1):
        return None
    x = aligned(a.x.contiguous())
    residual, gate = (None if t is None else aligned(t.contiguous()) for t in (a.residual, a.gate))
    rows, room = x.numel() // length, 1 << (length - 1).bit_length()
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    total = None if residual is None else torch.empty_like(x)
    powers = scaling == "mxfp8"
    own = codes = None
    if scale is None:
        sizes = (*x.shape[:-1], length // group_size if group_size else 1)
        own = torch.empty(sizes, dtype=torch.float8_e8m0fnu if powers else torch.float32, device=x.device)
        codes = own.view(torch.uint8) if powers else own
    group = group_size or room
    together = max(1, SMALLEST // room)
    flags = ForwardFlags(
        walk=int(Walk.WHOLE), along=int(Along.R1), alike=True, mask=int(MaskIndexing.NONE), activation=0,
        center=a.center, variance=False, eps=a.eps,
    )  # fmt: skip
    largest = 127.0 if dtype is torch.int8 else torch.finfo(dtype).max
    warps = max(1, min(MOST_WARPS, together * room * x.element_size() // (32 * 64)))
    device.launch(
        quantized.quantize, (-(-rows // together), 1, 1), warps,
        (x, residual, total, gate, a.weight, a.bias, scale, y, codes), rows, length,
        flags, NUMBERS[a.gate_activation], a.zero_centered, largest, torch.finfo(torch.float32).tiny,
        math.frexp(largest)[1] - 1 if powers else 0, together, room // group, group, x.numel() >= FAR,
    )  # fmt: skip
    return y, own, total
