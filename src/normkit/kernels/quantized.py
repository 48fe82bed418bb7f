"""Normalization of rows into formats of low precision: ``normkit::quantize``, without a gradient.

`quantize` normalizes in float32 and then rounds by one of the functions below, which define the formats.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from normkit.kernels import formula
from normkit.kernels.context import is_watched
from normkit.kernels.devices import kernels_for
from normkit.kernels.dtypes import working_dtype
from normkit.kernels.formula import Arguments
from normkit.kernels.operator import library
from normkit.kernels.sharded import know_distributed

BLOCKS = {"mxfp8": 32, "nvfp4": 16}
"""Elements that share a scale, in the formats that fix it."""
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0}
"""The largest element of each dtype; int8 is used symmetrically."""
FP4 = torch.float4_e2m1fn_x2
LARGEST_FP4 = 6.0
SMALLEST = torch.finfo(torch.float32).tiny
"""The least scale in float32: no division by a scale that is subnormal, or was rounded to 0."""

library.define(
    "quantize(Tensor x, Tensor? weight, Tensor? bias, Tensor? scale, float eps, bool center, ScalarType dtype,"
    " str scaling='row', int group_size=0, Tensor? residual=None, Tensor? gate=None, str gate_activation='none',"
    " bool zero_centered=False) -> (Tensor y, Tensor? scale, Tensor? global_scale, Tensor? sum)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
Rounded = tuple[Tensor, Tensor | None, Tensor | None]
"""Elements, their scales, and the scale of all; None for a scale that was given, or that the format does not have."""


def quantize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    eps: float,
    center: bool,
    dtype: torch.dtype,
    scaling: str = "row",
    group_size: int = 0,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    gate_activation: str = "none",
    zero_centered: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Rows of x + residual, normalized, times the gate, in `dtype`; their scales and the sum.

    `scale` is given for rows, and for NVFP4, where it is that of all. `group_size` is 0 for rows.
    """
    a = Arguments(x, weight, bias, "... [c]", eps, center, residual=residual)
    a = a._replace(gate=gate, gate_activation=gate_activation, zero_centered=zero_centered)
    kernels = kernels_for(x)
    if kernels is not None and x.dtype is not torch.float64:
        known = kernels.quantize(a, scale, dtype, scaling, group_size)
        if known is not None:
            return *known[:2], None, known[2]
    total = None if residual is None else (x + residual).contiguous()
    source = x if total is None else total
    z = formula.norm(a._replace(x=source.to(working_dtype(x)), residual=None)).y
    return *rounded(z.float().contiguous(), scale, dtype, scaling, group_size), total


def rounded(z: Tensor, scale: Tensor | None, dtype: torch.dtype, scaling: str, group_size: int) -> Rounded:
    """Values in float32, contiguous, in a format."""
    if scaling == "nvfp4":
        return _nvfp4(z, scale)
    groups = z.unflatten(-1, (-1, group_size) if group_size else (1, z.shape[-1]))
    if scaling == "mxfp8":
        scales, factor = _power_of_two(_largest(groups), math.frexp(LARGEST[dtype])[1] - 1)
        return _elements(groups * factor, dtype).flatten(-2), scales.flatten(-2), None
    if scale is not None:
        return _elements(z / scale, dtype), None, None
    scale = _scale(_largest(groups), LARGEST[dtype])
    return _elements(groups / scale, dtype).flatten(-2), scale.flatten(-2), None


def _largest(groups: Tensor) -> Tensor:
    """The largest absolute value of each group; NaN where a value of the group is not finite."""
    largest = groups.abs().amax(-1, keepdim=True) if groups.shape[-1] else groups.new_zeros((*groups.shape[:-1], 1))
    return torch.where(largest.isfinite(), largest, torch.nan)


def _scale(largest: Tensor, most: float) -> Tensor:
    """What brings the largest value to `most`; 1 for zeros."""
    return torch.where(largest == 0, 1, (largest / most).clamp(min=SMALLEST))


def _elements(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to nearest, ties to even; what is beyond the largest element becomes that."""
    values = values.clamp(-LARGEST[dtype], LARGEST[dtype])
    return values.round().nan_to_num(0).to(dtype) if dtype is torch.int8 else values.to(dtype)


def _power_of_two(largest: Tensor, exponent: int) -> tuple[Tensor, Tensor]:
    """``2 ** (floor(log2(largest)) - exponent)`` in E8M0, and its inverse in float32; both exact.

    From the bits: the exponent of float32 is biased by 127, as that of E8M0 is. The scales of zeros and of subnormal
    numbers are the smallest, 2**-127.
    """
    bits = (largest.view(torch.int32) >> 23) & 255
    biased = (bits - exponent).clamp(min=0)
    inverse = ((254 - biased) << 23).view(torch.float32)
    scale = torch.where(bits == 255, 255, biased).to(torch.uint8).view(torch.float8_e8m0fnu)
    return scale, torch.where(bits == 255, torch.nan, inverse)


def _nvfp4(z: Tensor, total: Tensor | None) -> Rounded:
    """Two elements in a byte, the scale of each block in E4M3, and that of all, in float32, if it is not given.

    ``scale = E4M3(largest / 6 / total)`` and ``element = E2M1(z / (scale * total))``, each step in float32.
    """
    blocks = z.unflatten(-1, (-1, BLOCKS["nvfp4"]))
    largest = _largest(blocks)
    own = None
    if total is None:
        # Blocks that are not finite do not spoil the scale of the others.
        most = largest.nan_to_num(0).amax() if largest.numel() else largest.new_zeros(())
        total = own = _scale(most, LARGEST_FP4 * LARGEST[torch.float8_e4m3fn])
    scale = (largest / LARGEST_FP4 / total).clamp(2.0**-9, LARGEST[torch.float8_e4m3fn]).to(torch.float8_e4m3fn)
    codes = _e2m1(blocks / (scale.float() * total)).flatten(-2)
    packed = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return packed.contiguous().view(FP4), scale.flatten(-2), own


def _e2m1(values: Tensor) -> Tensor:
    """The codes of E2M1 in four bits: sign, then 0, 0.5, 1, 1.5, 2, 3, 4, 6; ties to even codes, NaN to 0.

    Below 2 the codes count halves, up to 4 ones, then twos.
    """
    values = values.nan_to_num(0, LARGEST_FP4, -LARGEST_FP4).clamp(-LARGEST_FP4, LARGEST_FP4)
    size = values.abs()
    large = torch.where(size < 4, size.round() + 2, (size / 2).round() + 4)
    code = torch.where(size < 2, (size * 2).round(), large).to(torch.uint8)
    return code | (values.signbit().to(torch.uint8) << 3)


library.impl("quantize", quantize, "CompositeExplicitAutograd")


@torch.library.register_fake("normkit::quantize", lib=library)
def _(
    x: Tensor, _w: Any, _b: Any, scale: Tensor | None, _e: Any, _c: Any, dtype: torch.dtype, scaling: str = "row",
    group_size: int = 0, residual: Tensor | None = None, *_: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    *rows, channels = x.shape
    kinds = {"mxfp8": torch.float8_e8m0fnu, "nvfp4": torch.float8_e4m3fn}
    is_fp4 = scaling == "nvfp4"
    y = x.new_empty((*rows, channels // 2 if is_fp4 else channels), dtype=dtype)
    groups = channels // group_size if group_size else 1
    given = scale is not None and not is_fp4
    scales = None if given else x.new_empty((*rows, groups), dtype=kinds.get(scaling, torch.float32))
    own = x.new_empty((), dtype=torch.float32) if is_fp4 and scale is None else None
    return y, scales, own, None if residual is None else x.new_empty(x.shape)


_quantize = torch.ops.normkit.quantize.default


def operator(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """``normkit::quantize``."""
    if is_watched(x):
        know_distributed()
    out: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None] = _quantize(x, *rest)
    return out
