"""Root mean square normalization: layer normalization without the mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack, overload

from torch import Tensor

from normkit.functional.call.precision import CASTS, Cast, check_cast
from normkit.functional.call.spec import Spec, carry_out, with_conventions
from normkit.functional.extras import Epilogues, Output
from normkit.functional.layer import LAST_DIM, check_last, last_dims_pattern

RMS = with_conventions(Spec("rms_norm", check_last, center=False, over_last=True, lenient=True))


@overload
def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    cast: Cast = "after",
    zero_centered: bool = False,
    **fused: Unpack[Epilogues],
) -> Tensor: ...
@overload
def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    cast: Cast = "after",
    zero_centered: bool = False,
    return_residual: Literal[True],
    **fused: Unpack[Epilogues],
) -> tuple[Tensor, Tensor]: ...
@overload
def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    cast: Cast = "after",
    zero_centered: bool = False,
    return_residual: bool,
    **fused: Unpack[Epilogues],
) -> Output: ...
def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
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
    """Divide by the root mean square of the last dimensions; the region is ``... [c]``, not centred.

    ``y = x / sqrt(mean(x ** 2) + eps) * weight``.

    Args:
        input: ``(..., *normalized_shape)``, any strides.
        normalized_shape: the sizes of the last dimensions.
        weight: of shape `normalized_shape`, or with as many dimensions as the input, each of size 1 or the input's;
            or None. Float64 is rounded to the arithmetic of the input.
        eps: added to the mean square; None means the machine epsilon of the arithmetic, which is float32's for
            half-precision input.
        cast: ``"after"``: the weight is multiplied in float32, the result cast to the input's dtype; ``"before"``:
            the cast comes first, as in Llama. No difference in float32.
        zero_centered: the weight is stored around 0, and 1 is added to it, as in Gemma.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.
        gate, skip, gate_activation, gate_first: as in `normkit.functional.extras.Epilogues`.

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
    fused = (mask, lengths, residual, return_residual, activation, gate, skip, gate_activation, gate_first)
    if cast not in CASTS:
        check_cast("rms_norm", cast)
    pattern = LAST_DIM if len(normalized_shape) == 1 else last_dims_pattern(len(normalized_shape))
    return carry_out(RMS[cast, zero_centered], pattern, input, weight, None, eps, fused, normalized_shape)
