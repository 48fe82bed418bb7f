"""Reversible instance normalization: each series of a window is normalized, and a forecast taken back to its scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normkit.errors import ShapeError
from normkit.functional.call.checks import check_call, check_dimensions, check_parameter
from normkit.functional.call.moments import with_moments
from normkit.functional.call.spec import Spec, checked
from normkit.kernels.dtypes import arithmetic_dtype, working_dtype

PATTERN = "b [...] c"


class WindowStatistics(NamedTuple):
    """Mean and variance of each series of a window, (N, 1, ..., C), with their gradients."""

    mean: Tensor
    var: Tensor


def _check(name: str, input: Tensor, _: Any) -> tuple[int, ...]:
    check_dimensions(name, input, 3, "(N, T, C)")
    return (input.shape[-1],)


REVIN = Spec("revin", _check)


def revin(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
) -> tuple[Tensor, WindowStatistics]:
    """Normalize each series of each window over time; the region is ``b [...] c``.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``. `revin_inverse` takes a result back with the statistics that
    are returned. Both are differentiated through the statistics; the paper's implementation counts these as constants,
    which differs only where the input itself requires a gradient.

    Args:
        input: (N, T, C), or with more dimensions of time between N and C; any strides.
        weight, bias: (C,) or None.
        eps: added to the variance, in units of the input squared.
        mask: boolean, True at valid times, of a shape that broadcasts to (N, T). Padded times do not contribute to the
            statistics, and their output is 0.
        lengths: (N,) numbers of valid times of each window, in place of `mask`.

    Returns:
        A tensor with the input's shape, dtype and memory layout, and the statistics.

    Raises:
        ShapeError: fewer than three dimensions, or parameters of another size.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> y, statistics = functional.revin(torch.tensor([[[1.0], [3.0]]]), eps=0.0)
        >>> y.flatten(), functional.revin_inverse(torch.tensor([[[2.0]]]), statistics, eps=0.0)
        (tensor([-1.,  1.]), tensor([[[4.]]]))

    Source: Kim et al. 2022, Reversible Instance Normalization for Accurate Time-Series Forecasting against
    Distribution Shift, ICLR.
    """
    call = checked(REVIN, PATTERN, input, weight, bias, eps, (mask, lengths, None, False, None))
    a, shape = call.arguments, [len(input), *[1] * (input.dim() - 2), input.shape[-1]]
    if not input.numel():
        zeros = input.new_zeros(shape, dtype=arithmetic_dtype(input.dtype))
        empty = [t.sum().to(input.dtype) * 0 for t in (weight, bias) if t is not None]
        return sum(empty, input * 1), WindowStatistics(zeros, zeros + 1)  # weight and bias get a gradient of 0
    out = with_moments(a)
    assert out.mean is not None
    assert out.std is not None
    return out.y, WindowStatistics(out.mean.view(shape), out.std.to(working_dtype(out.std)).square().view(shape))


def revin_inverse(
    input: Tensor,
    statistics: tuple[Tensor, Tensor],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Take a forecast back to the scale of the window that `revin` normalized.

    ``y = (input - bias) / weight * sqrt(var + eps) + mean``. A weight nearer to 0 than eps counts as eps of its sign,
    so that the result is finite.

    Args:
        input: (N, T', C), as many samples and channels as the window, any number of times.
        statistics: mean and variance, as `revin` returns them.
        weight, bias: as given to `revin`.
        eps: as given to `revin`.

    Returns:
        A tensor with the input's shape and dtype.

    Raises:
        ShapeError: other samples or channels than the window's.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> x = torch.full((1, 5, 1), 7.1)
        >>> torch.equal(functional.revin_inverse(*functional.revin(x)), x)
        True

    Source: Kim et al. 2022.
    """
    check_call("revin_inverse", input, eps)
    mean, var = statistics
    if input.dim() != mean.dim() or input.shape[0] != mean.shape[0] or input.shape[-1] != mean.shape[-1]:
        window = f"({mean.shape[0]}, {'T, ' * (mean.dim() - 2)}{mean.shape[-1]})"
        raise ShapeError(
            f"revin_inverse needs the samples and channels of the window, shape {window}, got shape "
            f"{tuple(input.shape)}: pass the forecast of the batch that was normalized last"
        )
    for what, parameter in (("weight", weight), ("bias", bias)):
        check_parameter("revin_inverse", what, parameter, (input.shape[-1],), input)
    wide = mean.dtype
    y = input.to(wide)
    if bias is not None:
        y = y - bias.to(wide)
    if weight is not None:
        # Not weight + eps * eps as in the paper's implementation, which is 0 in half precision and at -eps * eps.
        least = torch.where(weight.to(wide) < 0, -eps, eps).to(wide)
        y = y / torch.where(weight.to(wide).abs() < eps, least, weight.to(wide))
    return torch.addcmul(mean, y, (var + eps).sqrt().to(wide)).to(input.dtype)
