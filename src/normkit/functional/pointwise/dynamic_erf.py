"""Dynamic erf: the error function of learned slope and shift in place of a norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack, overload

from torch import Tensor

from normkit.functional.extras import Fusions, Output
from normkit.functional.pointwise.blocks import ERF
from normkit.functional.pointwise.bounded import bounded, spec_of

DYNAMIC_ERF = spec_of("dynamic_erf")


@overload
def dynamic_erf(
    input: Tensor,
    alpha: Tensor,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    channels_last: bool = True,
    **fused: Unpack[Fusions],
) -> Tensor: ...
@overload
def dynamic_erf(
    input: Tensor,
    alpha: Tensor,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    channels_last: bool = True,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Fusions],
) -> tuple[Tensor, Tensor]: ...
@overload
def dynamic_erf(
    input: Tensor,
    alpha: Tensor,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    channels_last: bool = True,
    *,
    return_residual: bool,
    **fused: Unpack[Fusions],
) -> Output: ...
def dynamic_erf(
    input: Tensor,
    alpha: Tensor,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    channels_last: bool = True,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
) -> Output:
    """Bound each value by the error function of learned slope and shift, in place of a norm.

    ``y = erf(alpha * x + shift) * weight + bias``. There are no statistics: each value is computed by itself.

    Args:
        input: (..., features), any strides; (N, C, ...) without `channels_last`.
        alpha, shift: one number each, of shape (1,) or (); no shift for None.
        weight, bias: of the shape of the last dimensions, or None; (C,) without `channels_last`.
        channels_last: whether the features are the last dimensions; else they are dimension 1.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: parameters of another size.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> functional.dynamic_erf(torch.tensor([0.0, 1.0, 100.0]), torch.tensor([0.5]))
        tensor([0.0000, 0.5205, 1.0000])

    Source: Chen et al. 2025, arXiv:2512.10938.
    """
    fused = (mask, lengths, residual, return_residual, activation)
    return bounded(DYNAMIC_ERF, ERF, input, alpha, shift, weight, bias, channels_last, fused)
