"""Root mean square normalization: layer normalization without the mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor
from torch.compiler import is_compiling

from normkit.functional._checks import check_call, check_parameter
from normkit.functional.extras import Extras, Output, checked_extras
from normkit.functional.layer import check_normalized_shape, last_dims_pattern
from normkit.functional.nested import by_rows
from normkit.functional.precision import Cast, centred_at_one, check_cast, is_cast_first
from normkit.kernels import fastpath, operator
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import Arguments


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    cast: Cast = "after",
    zero_centered: bool = False,
    **extras: Unpack[Extras],
) -> Output:
    """Divide by the root mean square of the last dimensions; the region is ``... [c]``, not centred.

    ``y = x / sqrt(mean(x ** 2) + eps) * weight``.

    Args:
        input: (..., *normalized_shape), any strides.
        normalized_shape: the sizes of the last dimensions.
        weight: of shape `normalized_shape`, or None; float64 is rounded to the arithmetic of the input.
        eps: added to the mean square; None means the machine epsilon of the arithmetic, which is float32's for
            half-precision input.
        cast: ``"after"``: the weight is multiplied in float32, the result cast to the input's dtype; ``"before"``:
            the cast comes first, as in Llama. No difference in float32.
        zero_centered: the weight is kept around 0 and 1 is added to it, as in Gemma.
        extras: mask, lengths, residual, activation, return_residual, as `normkit.functional.extras.Extras` has them.

    Returns:
        A tensor with the input's shape, dtype and memory layout. A nested tensor gives a nested one.

    Raises:
        ShapeError: the input does not end with `normalized_shape`, or the weight has another shape.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> functional.rms_norm(torch.tensor([[3.0, 4.0]]), (2,))
        tensor([[0.8485, 1.1314]])

    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    if cast != "after" or zero_centered:
        check_cast("rms_norm", cast)
        if weight is not None and weight.dtype is torch.float64:
            weight = weight.to(arithmetic_dtype(input.dtype))
        check_parameter("rms_norm", "weight", weight, tuple(normalized_shape), input)
        weight = centred_at_one(weight, input) if zero_centered else weight
        if not is_cast_first(input, cast):
            return rms_norm(input, normalized_shape, weight, eps, **extras)
        if input.is_nested:
            return by_rows(
                "rms_norm",
                input,
                normalized_shape,
                extras,
                lambda rows: rms_norm(rows, normalized_shape, weight, eps, cast=cast, **extras),
            )
        if eps is None:
            eps = torch.finfo(arithmetic_dtype(input.dtype)).eps
        call = checked_extras("rms_norm", input, last_dims_pattern(len(normalized_shape)), extras)
        return call.output(call.run_cast_first(weight, None, eps, False))
    if not is_compiling():
        pattern = last_dims_pattern(len(normalized_shape))
        plain = (input, weight, None, pattern, eps, False, normalized_shape, None, None, None)
        y = fastpath.fused(*plain, extras) if extras else fastpath.normalize(*plain)
        if y is not None:
            return y
    if input.is_nested:
        return by_rows(
            "rms_norm",
            input,
            normalized_shape,
            extras,
            lambda rows: rms_norm(rows, normalized_shape, weight, eps, **extras),
        )
    check_call("rms_norm", input, 0.0 if eps is None else eps)
    if weight is not None and weight.dtype is torch.float64:  # torch takes it with any input
        weight = weight.to(arithmetic_dtype(input.dtype))
    shape = check_normalized_shape("rms_norm", input, normalized_shape)
    check_parameter("rms_norm", "weight", weight, shape, input)
    if eps is None:
        eps = torch.finfo(arithmetic_dtype(input.dtype)).eps
    pattern = last_dims_pattern(len(shape))
    if extras:
        call = checked_extras("rms_norm", input, pattern, extras)
        return call.output(call.run(weight, None, eps, center=False))
    return operator.run(Arguments(input, weight, None, pattern, eps, False)).y
