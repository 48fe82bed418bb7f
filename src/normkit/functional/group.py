"""Group normalization: a group of channels of one sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack, overload

from torch import Tensor

from normkit.errors import ArgumentError, ShapeError, nearest_divisor, whole_number
from normkit.functional.call.checks import check_dimensions
from normkit.functional.call.spec import Spec, carry_out
from normkit.functional.extras import Epilogues, Output


def _check(name: str, input: Tensor, num_groups: Any) -> tuple[int, ...]:
    check_dimensions(name, input, 2, "(N, C, ...)")
    channels = input.shape[1]
    num_groups = whole_number("num_groups", num_groups)
    if num_groups < 1 or channels % num_groups:
        raise ArgumentError(
            f"num_groups must divide the number of channels, got {num_groups} groups for {channels} channels: "
            f"the nearest that does is {nearest_divisor(channels, num_groups)}"
        )
    if input.numel() and channels == num_groups and input.shape[2:].numel() == 1:
        raise ShapeError(
            f"group_norm with {num_groups} groups gives each group one value of shape {tuple(input.shape)}, so that "
            "its output would be the bias alone: use fewer groups"
        )
    return (channels,)


GROUP = Spec("group_norm", _check)


@overload
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    **fused: Unpack[Epilogues],
) -> Tensor: ...
@overload
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Epilogues],
) -> tuple[Tensor, Tensor]: ...
@overload
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    return_residual: bool,
    **fused: Unpack[Epilogues],
) -> Output: ...
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
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
    """Normalize groups of channels of each sample; the region is ``b (g [c]) [...]``.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and variance over the channels of a group and all
    positions.

    Args:
        input: (N, C, ...), any strides.
        num_groups: must divide C.
        weight, bias: (C,); or with as many dimensions as the input, each of size 1 or the input's; or None.
        eps: added to the variance, in units of the input squared.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.
        gate, skip, gate_activation, gate_first: as in `normkit.functional.extras.Epilogues`.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: the number of groups is below 1 or does not divide C.
        ShapeError: a group of one single value, which would be erased, or parameters of another size.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> functional.group_norm(torch.tensor([[1.0, 3.0, 10.0, 30.0]]), num_groups=2, eps=0.0)
        tensor([[-1.,  1., -1.,  1.]])

    Source: Wu & He 2018, arXiv:1803.08494.
    """
    fused = (mask, lengths, residual, return_residual, activation, gate, skip, gate_activation, gate_first)
    return carry_out(GROUP, f"b (g={num_groups} [c]) [...]", input, weight, bias, eps, fused, num_groups)
