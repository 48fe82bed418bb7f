"""Dynamic tanh: a hyperbolic tangent of learned slope in place of a norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack, overload

from torch import Tensor

from normkit.functional.extras import Fusions, Output
from normkit.functional.pointwise.blocks import TANH
from normkit.functional.pointwise.bounded import bounded, spec_of

DYNAMIC_TANH = spec_of("dynamic_tanh")


@overload
def dynamic_tanh(
    input: Tensor,
    alpha: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    channels_last: bool = True,
    **fused: Unpack[Fusions],
) -> Tensor: ...
@overload
def dynamic_tanh(
    input: Tensor,
    alpha: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    channels_last: bool = True,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Fusions],
) -> tuple[Tensor, Tensor]: ...
@overload
def dynamic_tanh(
    input: Tensor,
    alpha: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    channels_last: bool = True,
    *,
    return_residual: bool,
    **fused: Unpack[Fusions],
) -> Output: ...
def dynamic_tanh(
    input: Tensor,
    alpha: Tensor,
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
    """Bound each value by a hyperbolic tangent of learned slope, in place of a norm.

    ``y = tanh(alpha * x) * weight + bias``. There are no statistics: each value is computed by itself.

    Args:
        input: (..., features), any strides; (N, C, ...) without `channels_last`.
        alpha: one number, of shape (1,) or ().
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
        >>> functional.dynamic_tanh(torch.tensor([0.0, 1.0, 100.0]), torch.tensor([0.5]))
        tensor([0.0000, 0.4621, 1.0000])

    Source: Zhu et al. 2025, arXiv:2503.10622.
    """
    fused = (mask, lengths, residual, return_residual, activation)
    return bounded(DYNAMIC_TANH, TANH, input, alpha, None, weight, bias, channels_last, fused)
