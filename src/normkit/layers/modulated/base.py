"""What the modulated norms share: a norm without parameters as a child, and the product and sum after it."""

from __future__ import annotations

from torch import Tensor, nn

from normkit.kernels.dtypes import arithmetic_dtype
from normkit.layers.batch.norm import BatchNorm2d
from normkit.layers.general import Norm
from normkit.layers.group import GroupNorm
from normkit.layers.instance import InstanceNorm2d
from normkit.layers.layer import LayerNorm
from normkit.layers.rms import RMSNorm

FUSING = (BatchNorm2d, GroupNorm, InstanceNorm2d, LayerNorm, Norm, RMSNorm)
"""The norms that scale and shift in the same pass."""


def modulated(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``norm(x) * scale + shift``, with scale and shift of shapes that broadcast to x.

    In one pass, other than where the norm is none of these any more because a tool has replaced it or watches it.
    """
    scale, shift = (t.to(x.dtype if t.numel() == x.numel() else arithmetic_dtype(x.dtype)) for t in (scale, shift))
    watched = norm._forward_hooks or norm._forward_pre_hooks
    if type(norm) in FUSING and getattr(norm, "activation", None) is None and not watched:
        y: Tensor = norm(x, gate=scale, skip=shift)
        return y
    y = norm(x)
    return (y * scale + shift).to(y.dtype)


def one_plus(scale: Tensor, x: Tensor) -> Tensor:
    """1 + scale in the arithmetic of x: in half precision the sum would lose the digits of a small scale."""
    return 1 + scale.to(arithmetic_dtype(x.dtype))
