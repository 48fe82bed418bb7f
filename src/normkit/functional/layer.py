"""Layer normalization: all features of one sample or token; and of one pixel, channels first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack, overload

from torch import Tensor

from normkit.errors import ArgumentError, ShapeError
from normkit.functional.call.checks import check_dimensions
from normkit.functional.call.precision import CASTS, Cast, check_cast
from normkit.functional.call.spec import Spec, carry_out, with_conventions
from normkit.functional.extras import Epilogues, Output

LAST_DIM = "... [c]"
PATTERN_2D = "b [c] ..."


def last_dims_pattern(n: int) -> str:
    """The region of the last n dimensions, each with its own weights: ``... [c1 c2]``."""
    return LAST_DIM if n == 1 else f"... [{' '.join([f'c{i}' for i in range(1, n + 1)])}]"


def check_last(name: str, input: Tensor, normalized_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple, if the input ends with it."""
    shape = normalized_shape if isinstance(normalized_shape, tuple) else tuple(normalized_shape)
    if not shape:
        raise ArgumentError(f"normalized_shape of {name} must have at least one dimension, got (): give the last sizes")
    if input.shape[-len(shape) :] != shape:
        raise ShapeError(
            f"the input of {name} must end with normalized_shape {shape}, got shape {tuple(input.shape)}: "
            "make the layer for the input's last sizes, or permute the input"
        )
    return shape


def _check_channels(name: str, input: Tensor, _: Any) -> tuple[int, ...]:
    check_dimensions(name, input, 2, "(N, C, ...)")
    return (input.shape[1],)


LAYER = with_conventions(Spec("layer_norm", check_last, over_last=True))
LAYER_2D = Spec("layer_norm2d", _check_channels)


@overload
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    cast: Cast = "after",
    zero_centered: bool = False,
    **fused: Unpack[Epilogues],
) -> Tensor: ...
@overload
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    cast: Cast = "after",
    zero_centered: bool = False,
    return_residual: Literal[True],
    **fused: Unpack[Epilogues],
) -> tuple[Tensor, Tensor]: ...
@overload
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    cast: Cast = "after",
    zero_centered: bool = False,
    return_residual: bool,
    **fused: Unpack[Epilogues],
) -> Output: ...
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    cast: Cast = "after",
    zero_centered: bool = False,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
    gate: Tensor | None = None,
    skip: Tensor | None = None,
    gate_activation: str | None = None,
    gate_first: bool = False,
) -> Output:
    """Normalize the last dimensions; the region is ``... [c]``.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and variance over `normalized_shape`.

    Args:
        input: ``(..., *normalized_shape)``, any strides.
        normalized_shape: the sizes of the last dimensions.
        weight, bias: of shape `normalized_shape`; or with as many dimensions as the input, each of size 1 or the
            input's, such as (N, 1, C); or None.
        eps: added to the variance, in units of the input squared.
        cast: ``"after"``: the weight is multiplied in float32, the result cast to the input's dtype; ``"before"``:
            the cast comes first, as in Llama. No difference in float32.
        zero_centered: the weight is stored around 0, and 1 is added to it, as in Gemma.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.
        gate, skip, gate_activation, gate_first: as in `normkit.functional.extras.Epilogues`.

    Returns:
        A tensor with the input's shape, dtype and memory layout. A nested tensor gives a nested one.

    Raises:
        ShapeError: the input does not end with `normalized_shape`, or parameters have another shape.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> functional.layer_norm(torch.tensor([[40000.0, 40001.0, 40002.0, 40003.0]]), (4,))
        tensor([[-1.3416, -0.4472,  0.4472,  1.3416]])

    Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450.
    """
    fused = (mask, lengths, residual, return_residual, activation, gate, skip, gate_activation, gate_first)
    if cast not in CASTS:
        check_cast("layer_norm", cast)
    pattern = LAST_DIM if len(normalized_shape) == 1 else last_dims_pattern(len(normalized_shape))
    return carry_out(LAYER[cast, zero_centered], pattern, input, weight, bias, eps, fused, normalized_shape)


@overload
def layer_norm2d(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    **fused: Unpack[Epilogues],
) -> Tensor: ...
@overload
def layer_norm2d(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Epilogues],
) -> tuple[Tensor, Tensor]: ...
@overload
def layer_norm2d(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    return_residual: bool,
    **fused: Unpack[Epilogues],
) -> Output: ...
def layer_norm2d(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
    gate: Tensor | None = None,
    skip: Tensor | None = None,
    gate_activation: str | None = None,
    gate_first: bool = False,
) -> Output:
    """Normalize each pixel over its channels, channels first and without a permute; the region is ``b [c] ...``.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and variance over the channels of one position.

    Args:
        input: (N, C, ...), any strides.
        weight, bias: (C,); or with as many dimensions as the input, each of size 1 or the input's; or None.
        eps: added to the variance, in units of the input squared.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.
        gate, skip, gate_activation, gate_first: as in `normkit.functional.extras.Epilogues`.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: fewer than two dimensions, or parameters of another size.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> functional.layer_norm2d(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1), eps=0.0).flatten()
        tensor([-1.,  1.])

    Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450; per pixel as in ConvNeXt, Liu et al. 2022, arXiv:2201.03545.
    """
    fused = (mask, lengths, residual, return_residual, activation, gate, skip, gate_activation, gate_first)
    return carry_out(LAYER_2D, PATTERN_2D, input, weight, bias, eps, fused)
