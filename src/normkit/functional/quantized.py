"""Layer and RMS normalization with an output in 8-bit floating point, for a matrix product that takes such."""

from __future__ import annotations

import torch
from torch import Tensor

from normkit.errors import ArgumentError, ShapeError
from normkit.functional.call.checks import check_call, check_parameter
from normkit.kernels.quantized import operator

DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


def quantized_layer_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Layer normalization over the last dimension, rounded to 8 bits; for inference, it has no gradient.

    ``y = round(layer_norm(x) / scale)``, so that ``y.float() * scale`` is about ``layer_norm(x)``.

    Args:
        input: (..., channels), any strides.
        weight, bias: of shape (channels,), or None.
        eps: added to the variance.
        dtype: ``torch.float8_e4m3fn``, which rounds to 3 bits after the point, or ``torch.float8_e5m2``, to 2.
        scale: one number in float32, as calibration finds it; what is beyond the largest value of `dtype` becomes
            that. None takes one for each row, which brings its largest value to that of `dtype`.

    Returns:
        y of the input's shape, contiguous, and the scale, float32: the one given, or of shape (..., 1).

    Raises:
        ShapeError: a weight, bias or scale of another shape.
        ArgumentError: a dtype that has not 8 bits.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> y, scale = functional.quantized_layer_norm(torch.tensor([[1.0, 2.0, 6.0]]))
        >>> y.dtype, (y.float() * scale).round(decimals=1)
        (torch.float8_e4m3fn, tensor([[-0.9000, -0.4000,  1.4000]]))

    Source: for the formats, Micikevicius et al. 2022, arXiv:2209.05433.
    """
    return _quantized("quantized_layer_norm", input, weight, bias, eps, True, dtype, scale)


def quantized_rms_norm(
    input: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """RMS normalization over the last dimension, rounded to 8 bits; all else as in `quantized_layer_norm`.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> y, scale = functional.quantized_rms_norm(torch.tensor([[3.0, 4.0]]), scale=torch.tensor(0.01))
        >>> y
        tensor([[ 88., 112.]], dtype=torch.float8_e4m3fn)
    """
    return _quantized("quantized_rms_norm", input, weight, None, eps, False, dtype, scale)


def _quantized(
    name: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    center: bool,
    dtype: torch.dtype,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    check_call(name, x, eps)
    if x.dim() < 1:
        raise ShapeError(f"{name} needs a last dimension to normalize, got a scalar: give it shape (1,)")
    for what, t in (("weight", weight), ("bias", bias)):
        check_parameter(name, what, t, (x.shape[-1],), x)
    if dtype not in DTYPES:
        known = " or ".join(map(str, DTYPES))
        raise ArgumentError(f"dtype of {name} must be {known}, got {dtype}: for wider ones use {name[10:]}")
    if scale is not None and (scale.numel() != 1 or scale.dtype is not torch.float32):
        raise ShapeError(
            f"scale of {name} must be one number in float32, got shape {tuple(scale.shape)} in {scale.dtype}: "
            "leave it out for a scale of each row"
        )
    weight, bias = (None if t is None else t.detach() for t in (weight, bias))
    return operator(x.detach(), weight, bias, scale, eps, center, dtype)
