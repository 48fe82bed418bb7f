"""Group normalization: a group of channels of one sample."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor
from torch.compiler import is_compiling

from normkit.errors import ArgumentError, ShapeError, whole_number
from normkit.functional._checks import check_call, check_dimensions, check_parameter
from normkit.functional.extras import Extras, Output, checked_extras
from normkit.kernels import fastpath, operator
from normkit.kernels.formula import Arguments


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    **extras: Unpack[Extras],
) -> Output:
    """Normalize groups of channels of each sample; the region is ``b (g [c]) [...]``.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and variance over the channels of a group and all
    positions.

    Args:
        input: (N, C, ...), any strides.
        num_groups: must divide C.
        weight, bias: (C,) or None.
        eps: added to the variance, in units of the input squared.
        extras: mask, lengths, residual, activation, return_residual, as `normkit.functional.extras.Extras` has them.

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
    pattern = f"b (g={num_groups} [c]) [...]"
    if not is_compiling():
        plain = (input, weight, bias, pattern, eps, True, None, None, None, None)
        y = fastpath.fused(*plain, extras) if extras else fastpath.normalize(*plain)
        if y is not None:
            return y
    check_call("group_norm", input, eps)
    check_dimensions("group_norm", input, 2, "(N, C, ...)")
    channels = input.shape[1]
    num_groups = whole_number("num_groups", num_groups)
    if num_groups < 1 or channels % num_groups:
        fits = [d for d in range(1, channels + 1) if channels % d == 0]
        near = min(fits, key=lambda d: abs(d - num_groups), default=1)
        raise ArgumentError(
            f"num_groups must divide the number of channels, got {num_groups} groups for {channels} channels: "
            f"the nearest that does is {near}"
        )
    if input.numel() and channels == num_groups and input.shape[2:].numel() == 1:
        raise ShapeError(
            f"group_norm with {num_groups} groups gives each group one value of shape {tuple(input.shape)}, so that "
            "its output would be the bias alone: use fewer groups"
        )
    check_parameter("group_norm", "weight", weight, (channels,), input)
    check_parameter("group_norm", "bias", bias, (channels,), input)
    pattern = f"b (g={num_groups} [c]) [...]"
    if extras:
        call = checked_extras("group_norm", input, pattern, extras)
        return call.output(call.run(weight, bias, eps))
    return operator.run(Arguments(input, weight, bias, pattern, eps, True)).y
