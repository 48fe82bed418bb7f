"""Layer normalization: all features of one sample or token; and of one pixel, channels first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor
from torch.compiler import is_compiling

from normkit.errors import ArgumentError, ShapeError
from normkit.functional._checks import check_call, check_dimensions, check_parameter
from normkit.functional.extras import Extras, Output, checked_extras
from normkit.functional.nested import by_rows
from normkit.functional.precision import Cast, centred_at_one, check_cast, is_cast_first
from normkit.kernels import fastpath, operator
from normkit.kernels.formula import Arguments

PATTERN_2D = "b [c] ..."


def last_dims_pattern(n: int) -> str:
    """The region of the last n dimensions, each with its own weights: ``... [c1 c2]``."""
    return "... [c]" if n == 1 else f"... [{' '.join([f'c{i}' for i in range(1, n + 1)])}]"


def check_normalized_shape(name: str, input: Tensor, normalized_shape: Sequence[int]) -> tuple[int, ...]:
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


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    cast: Cast = "after",
    zero_centered: bool = False,
    **extras: Unpack[Extras],
) -> Output:
    """Normalize the last dimensions; the region is ``... [c]``.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and variance over `normalized_shape`.

    Args:
        input: (..., *normalized_shape), any strides.
        normalized_shape: the sizes of the last dimensions.
        weight, bias: of shape `normalized_shape`, or None.
        eps: added to the variance, in units of the input squared.
        cast: ``"after"``: the weight is multiplied in float32, the result cast to the input's dtype; ``"before"``:
            the cast comes first, as in Llama. No difference in float32.
        zero_centered: the weight is kept around 0 and 1 is added to it, as in Gemma.
        extras: mask, lengths, residual, activation, return_residual, as `normkit.functional.extras.Extras` has them.

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
    if cast != "after" or zero_centered:
        check_cast("layer_norm", cast)
        check_parameter("layer_norm", "weight", weight, tuple(normalized_shape), input)
        weight = centred_at_one(weight, input) if zero_centered else weight
        if not is_cast_first(input, cast):
            return layer_norm(input, normalized_shape, weight, bias, eps, **extras)
        if input.is_nested:
            return by_rows(
                "layer_norm",
                input,
                normalized_shape,
                extras,
                lambda rows: layer_norm(rows, normalized_shape, weight, bias, eps, cast=cast, **extras),
            )
        call = checked_extras("layer_norm", input, last_dims_pattern(len(normalized_shape)), extras)
        return call.output(call.run_cast_first(weight, bias, eps, True))
    if not is_compiling():
        pattern = last_dims_pattern(len(normalized_shape))
        plain = (input, weight, bias, pattern, eps, True, normalized_shape, None, None, None)
        y = fastpath.fused(*plain, extras) if extras else fastpath.normalize(*plain)
        if y is not None:
            return y
    if input.is_nested:
        return by_rows(
            "layer_norm",
            input,
            normalized_shape,
            extras,
            lambda rows: layer_norm(rows, normalized_shape, weight, bias, eps, **extras),
        )
    check_call("layer_norm", input, eps)
    shape = check_normalized_shape("layer_norm", input, normalized_shape)
    check_parameter("layer_norm", "weight", weight, shape, input)
    check_parameter("layer_norm", "bias", bias, shape, input)
    pattern = last_dims_pattern(len(shape))
    if extras:
        call = checked_extras("layer_norm", input, pattern, extras)
        return call.output(call.run(weight, bias, eps))
    return operator.run(Arguments(input, weight, bias, pattern, eps, True)).y


def layer_norm2d(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    **extras: Unpack[Extras],
) -> Output:
    """Normalize each pixel over its channels, channels first and without a permute; the region is ``b [c] ...``.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and variance over the channels of one position.

    Args:
        input: (N, C, ...), any strides.
        weight, bias: (C,) or None.
        eps: added to the variance, in units of the input squared.
        extras: mask, lengths, residual, activation, return_residual, as `normkit.functional.extras.Extras` has them.

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
    if not is_compiling():
        plain = (input, weight, bias, PATTERN_2D, eps, True, None, None, None, None)
        y = fastpath.fused(*plain, extras) if extras else fastpath.normalize(*plain)
        if y is not None:
            return y
    check_call("layer_norm2d", input, eps)
    check_dimensions("layer_norm2d", input, 2, "(N, C, ...)")
    check_parameter("layer_norm2d", "weight", weight, (input.shape[1],), input)
    check_parameter("layer_norm2d", "bias", bias, (input.shape[1],), input)
    if extras:
        call = checked_extras("layer_norm2d", input, PATTERN_2D, extras)
        return call.output(call.run(weight, bias, eps))
    return operator.run(Arguments(input, weight, bias, PATTERN_2D, eps, True)).y
