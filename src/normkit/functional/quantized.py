"""Layer and RMS normalization with an output in low precision, for a matrix product that takes such."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypedDict, Unpack, overload

import torch
from torch import Tensor

from normkit.errors import ArgumentError, DtypeError, ShapeError, nearest, nearest_divisor, whole_number
from normkit.functional.call.checks import check_call, check_parameter
from normkit.functional.call.epilogue import Epilogue
from normkit.functional.call.fusions import check_residual
from normkit.kernels.quantized import BLOCKS, FP4, operator

Scaling = Literal["row", "group", "mxfp8", "nvfp4"]
"""Which elements share a scale, and what kind of number that is."""

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
DTYPES = {"row": (*FP8, torch.int8), "group": (*FP8, torch.int8), "mxfp8": FP8, "nvfp4": (FP4,)}
"""Of the elements, by scaling; the first is the default."""
GROUP = 128


class Options(TypedDict, total=False):
    """The keyword arguments that do not decide how many tensors are returned."""

    dtype: torch.dtype | None
    group_size: int
    scale: Tensor | None
    global_scale: Tensor | None
    residual: Tensor | None
    gate: Tensor | None
    gate_activation: str | None
    zero_centered: bool


class _Format(NamedTuple):
    """The format, as a function is asked for it."""

    scaling: str
    dtype: torch.dtype | None
    group_size: int
    scale: Tensor | None
    global_scale: Tensor | None


class _Call(NamedTuple):
    """What is computed before values are rounded."""

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    center: bool
    residual: Tensor | None
    gate: Tensor | None
    gate_activation: str | None
    zero_centered: bool


@overload
def quantized_layer_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    scaling: Literal["row", "group", "mxfp8"] = "row",
    return_residual: Literal[False] = False,
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]: ...
@overload
def quantized_layer_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    scaling: Literal["row", "group", "mxfp8"] = "row",
    return_residual: Literal[True],
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def quantized_layer_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    scaling: Literal["nvfp4"],
    return_residual: Literal[False] = False,
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def quantized_layer_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    scaling: Scaling = "row",
    return_residual: bool = False,
    **options: Unpack[Options],
) -> tuple[Tensor, ...]: ...
def quantized_layer_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    dtype: torch.dtype | None = None,
    scaling: Scaling = "row",
    group_size: int = GROUP,
    scale: Tensor | None = None,
    global_scale: Tensor | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    gate: Tensor | None = None,
    gate_activation: str | None = None,
    zero_centered: bool = False,
) -> tuple[Tensor, ...]:
    """Layer normalization over the last dimension, rounded to 8 or 4 bits; for inference, it has no gradient.

    ``y = round(z / scale)`` with ``z = layer_norm(x + residual) * activation(gate)`` in float32, so that
    ``y.float() * scale`` is about z. Values are rounded to nearest, ties to even. Those beyond the largest element
    become that.

    ======== ===================== ============ ==========================================================
    scaling  elements              share a      scale
                                   scale
    ======== ===================== ============ ==========================================================
    "row"    float8_e4m3fn,        a row        float32: ``amax / largest element``, which is 448, 57344 or
             float8_e5m2, int8                  127 (int8 is symmetric, without -128)
    "group"  the same              `group_size` the same
    "mxfp8"  float8_e4m3fn,        32           float8_e8m0fnu: ``2 ** (floor(log2(amax)) - 8)``, 15 in
             float8_e5m2                        place of 8 for float8_e5m2
    "nvfp4"  float4_e2m1fn_x2, two 16           float8_e4m3fn: ``amax / 6 / global_scale``; the global
             in a byte                          scale in float32 is ``amax of all / (6 * 448)``
    ======== ===================== ============ ==========================================================

    MXFP8 rounds the exponent of a scale down, as the specification of the Open Compute Project has it, so values of up
    to 512 times the scale become 448 times the scale. Other software may round it up; torchao and cuBLAS offer both.
    NVFP4 keeps element 2i in the low four bits of byte i; its values are ``element * scale * global_scale``.

    Zeros have the scale 1, in MXFP8 and NVFP4 the smallest one. If a value is NaN or infinite, its scale is NaN, so all
    values that share the scale are restored as NaN; they do not contribute to the global scale. With a given `scale`,
    infinity becomes the largest element, and NaN stays NaN, or becomes 0 in int8.

    Args:
        input: (..., channels), any strides.
        weight, bias: of shape (channels,), or None.
        eps: added to the variance.
        dtype: of the elements; None for the first in the table.
        scaling: which values share a scale, see the table.
        group_size: values of a group; it divides the channels. For ``scaling="group"``, 128 as in DeepSeek-V3.
        scale: one positive number in float32, as calibration finds it, for ``scaling="row"``. None takes one for each
            row.
        global_scale: the same for ``scaling="nvfp4"``. None takes it from the largest value of all rows.
        residual: of the input's shape and dtype, added to the input first.
        return_residual: whether to return the sum, too.
        gate: of a shape that broadcasts to the input's; its activation is multiplied with the result before values are
            rounded.
        gate_activation: a name as for `activation` in `normkit.functional.extras.Extras`, or None.
        zero_centered: the weight is stored around 0, and 1 is added to it, as in Gemma.

    Returns:
        y of the input's shape, contiguous (half as many bytes in the last dimension for NVFP4), and the scale: the one
        given, or of shape (..., 1), (..., channels / group_size), (..., channels / 32) or (..., channels / 16). With
        ``"nvfp4"`` then the global scale, and with ``return_residual=True`` last the sum.

    Raises:
        ShapeError: a weight, bias, scale, residual or gate of another shape; groups that do not divide the channels.
        ArgumentError: an unknown scaling, a dtype it does not have, or an argument that belongs to another one.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> y, scale = functional.quantized_layer_norm(torch.tensor([[1.0, 2.0, 6.0]]))
        >>> y.dtype, (y.float() * scale).round(decimals=1)
        (torch.float8_e4m3fn, tensor([[-0.9000, -0.4000,  1.4000]]))
        >>> y, scale = functional.quantized_layer_norm(torch.randn(4, 256), scaling="group")
        >>> y.shape, scale.shape
        (torch.Size([4, 256]), torch.Size([4, 2]))

    Source: Micikevicius et al. 2022, arXiv:2209.05433 (FP8); DeepSeek-AI 2024, arXiv:2412.19437 (groups); Rouhani et
    al. 2023, arXiv:2310.10537, and OCP Microscaling Formats 1.0 (MXFP8); NVIDIA 2025, arXiv:2509.25149 (NVFP4).
    """
    call = _Call(input, weight, bias, eps, True, residual, gate, gate_activation, zero_centered)
    wanted = _Format(scaling, dtype, group_size, scale, global_scale)
    return _quantized("quantized_layer_norm", call, wanted, return_residual)


@overload
def quantized_rms_norm(
    input: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    scaling: Literal["row", "group", "mxfp8"] = "row",
    return_residual: Literal[False] = False,
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]: ...
@overload
def quantized_rms_norm(
    input: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    scaling: Literal["row", "group", "mxfp8"] = "row",
    return_residual: Literal[True],
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def quantized_rms_norm(
    input: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    scaling: Literal["nvfp4"],
    return_residual: Literal[False] = False,
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def quantized_rms_norm(
    input: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    scaling: Scaling = "row",
    return_residual: bool = False,
    **options: Unpack[Options],
) -> tuple[Tensor, ...]: ...
def quantized_rms_norm(
    input: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    dtype: torch.dtype | None = None,
    scaling: Scaling = "row",
    group_size: int = GROUP,
    scale: Tensor | None = None,
    global_scale: Tensor | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    gate: Tensor | None = None,
    gate_activation: str | None = None,
    zero_centered: bool = False,
) -> tuple[Tensor, ...]:
    """RMS normalization over the last dimension, rounded to 8 or 4 bits; all else as in `quantized_layer_norm`.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> y, scale = functional.quantized_rms_norm(torch.tensor([[3.0, 4.0]]), scale=torch.tensor(0.01))
        >>> y
        tensor([[ 88., 112.]], dtype=torch.float8_e4m3fn)
    """
    call = _Call(input, weight, None, eps, False, residual, gate, gate_activation, zero_centered)
    wanted = _Format(scaling, dtype, group_size, scale, global_scale)
    return _quantized("quantized_rms_norm", call, wanted, return_residual)


def _quantized(name: str, call: _Call, wanted: _Format, return_residual: bool) -> tuple[Tensor, ...]:
    x = call.input
    check_call(name, x, call.eps)
    if x.dim() < 1:
        raise ShapeError(f"{name} needs a last dimension to normalize, got a scalar: give it shape (1,)")
    for what, t in (("weight", call.weight), ("bias", call.bias)):
        check_parameter(name, what, t, (x.shape[-1],), x)
    check_residual(name, x, call.residual)
    own = Epilogue(call.weight, call.bias, call.gate, None, call.gate_activation, zero_centered=call.zero_centered)
    activation = own.checked(name, x, (x.shape[-1],), call.residual).gate_activation
    gate = None if call.gate is None else call.gate.to(x.dtype).expand(x.shape)
    dtype, size = _checked_format(name, wanted, x.shape[-1])
    given = wanted.global_scale if wanted.scaling == "nvfp4" else wanted.scale
    tensors = (call.weight, call.bias, given, call.residual, gate)
    *parameters, residual, gate = [None if t is None else t.detach() for t in tensors]
    rest = (dtype, wanted.scaling, size, residual, gate, activation, call.zero_centered)
    y, scale, of_all, total = operator(x.detach(), *parameters, call.eps, call.center, *rest)
    out = [y, given if scale is None else scale]
    if wanted.scaling == "nvfp4":
        out.append(given if of_all is None else of_all)
    if return_residual:
        out.append(x if total is None else total)
    return tuple([t for t in out if t is not None])


def _checked_format(name: str, wanted: _Format, channels: int) -> tuple[torch.dtype, int]:
    """The dtype of the elements, and how many of them share a scale, 0 for rows."""
    scaling = wanted.scaling
    if scaling not in DTYPES:
        known = ", ".join(map(repr, DTYPES))
        raise ArgumentError(
            f"scaling of {name} must be one of {known}, got {scaling!r}: {nearest(str(scaling), DTYPES)}"
        )
    dtype = DTYPES[scaling][0] if wanted.dtype is None else wanted.dtype
    if dtype not in DTYPES[scaling]:
        known = " or ".join(map(str, DTYPES[scaling]))
        raise ArgumentError(
            f"dtype of {name} with scaling={scaling!r} must be {known}, got {dtype}: "
            f"leave it out, or for wider ones use {name[10:]}"
        )
    for what, t, owner in (("scale", wanted.scale, "row"), ("global_scale", wanted.global_scale, "nvfp4")):
        _check_scale(name, what, t, owner, scaling)
    size = whole_number("group_size", wanted.group_size)
    if size < 1:
        raise ArgumentError(f"group_size of {name} must be at least 1, got {size}: use 128")
    if scaling != "group" and size != GROUP:
        raise ArgumentError(f"group_size of {name} belongs to scaling='group', got {scaling!r}: leave it out")
    size = size if scaling == "group" else BLOCKS.get(scaling, 0)
    if size and channels % size:
        free = scaling == "group"
        remedy = f"use group_size={nearest_divisor(channels, size)}" if free else "pad them, or use scaling='row'"
        raise ShapeError(f"scaling={scaling!r} of {name} needs channels in groups of {size}, got {channels}: {remedy}")
    return dtype, size


def _check_scale(name: str, what: str, t: Tensor | None, owner: str, scaling: str) -> None:
    """A given scale is one number, and suits the format."""
    if t is None:
        return
    if scaling != owner:
        raise ArgumentError(f"{what} of {name} belongs to scaling={owner!r}, got {scaling!r}: leave it out")
    if not isinstance(t, Tensor):
        raise DtypeError(f"{what} of {name} must be a tensor, got {type(t).__name__}: give torch.tensor({t})")
    if t.numel() != 1 or t.dtype is not torch.float32:
        raise ShapeError(
            f"{what} of {name} must be one number in float32, got shape {tuple(t.shape)} in {t.dtype}: "
            "leave it out to have it computed"
        )
