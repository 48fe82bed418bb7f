"""Normalization of rows into 8-bit floating point, one scale for each: ``normkit::quantize``, without a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normkit.kernels import formula
from normkit.kernels.context import is_watched
from normkit.kernels.devices import kernels_for
from normkit.kernels.formula import Arguments
from normkit.kernels.operator import library
from normkit.kernels.sharded import know_distributed

library.define(
    "quantize(Tensor x, Tensor? weight, Tensor? bias, Tensor? scale, float eps, bool center, ScalarType dtype)"
    " -> (Tensor y, Tensor scale)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def quantize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    eps: float,
    center: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """y = row / scale in `dtype`, for rows of x normalized; scales are fp32, and by default take largest to largest."""
    a, kernels = Arguments(x, weight, bias, "... [c]", eps, center), kernels_for(x)
    known = None if kernels is None or x.dtype is torch.float64 else kernels.quantize(a, scale, dtype)
    if known is not None:
        return known
    y, largest = formula.norm(a._replace(x=x.float())).y, torch.finfo(dtype).max
    if scale is None:
        most = y.abs().amax(-1, keepdim=True)
        scale = torch.where(most > 0, most / largest, 1)
    return (y / scale).clamp(-largest, largest).to(dtype), scale


library.impl("quantize", quantize, "CompositeExplicitAutograd")


@torch.library.register_fake("normkit::quantize", lib=library)
def _(x: Tensor, _w: Any, _b: Any, scale: Tensor | None, _e: Any, _c: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    own = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32) if scale is None else torch.empty_like(scale)
    return x.new_empty(x.shape, dtype=dtype), own


_quantize = torch.ops.normkit.quantize.default


def operator(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """``normkit::quantize``."""
    if is_watched(x):
        know_distributed()
    out: tuple[Tensor, Tensor] = _quantize(x, *rest)
    return out
