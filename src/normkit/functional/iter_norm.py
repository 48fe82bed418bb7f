"""Iterative normalization: the channels of a batch decorrelated by a whitening matrix from Newton's iterations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from normkit.errors import ArgumentError, nearest_divisor, whole_number
from normkit.functional.batch.norm import PATTERN, check_batch, check_channels
from normkit.functional.call.checks import check_parameter
from normkit.functional.call.recompute import is_recomputing
from normkit.functional.call.running import store, towards
from normkit.functional.call.spec import Spec, checked, checked_counts
from normkit.functional.extras import Fusions, Output
from normkit.kernels.dtypes import arithmetic_dtype, working_dtype
from normkit.kernels.layout import dense_like

TRAINING = Spec("iter_norm", partial(check_batch, remedy="eval() to use running statistics"))
EVALUATION = Spec("iter_norm", check_channels)


@overload
def iter_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_whitening: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    num_groups: int = 1,
    iterations: int = 5,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **fused: Unpack[Fusions],
) -> Tensor: ...
@overload
def iter_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_whitening: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    num_groups: int = 1,
    iterations: int = 5,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Fusions],
) -> tuple[Tensor, Tensor]: ...
@overload
def iter_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_whitening: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    num_groups: int = 1,
    iterations: int = 5,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_residual: bool,
    **fused: Unpack[Fusions],
) -> Output: ...
def iter_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_whitening: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    num_groups: int = 1,
    iterations: int = 5,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
) -> Output:
    """Subtract the mean of each channel and decorrelate the channels of each group.

    ``y = whitening @ (x - mean) * weight + bias``, where the whitening matrix approximates the inverse square root of
    the covariance matrix plus eps on its diagonal (ZCA whitening), over batch and positions. With ``S`` that matrix
    divided by its trace and ``P = I``, `iterations` of Newton's method, ``P <- (3 P - P P P S) / 2``, give
    ``whitening = P / sqrt(trace)``: directions of small variance reach variance 1 last. The gradient is exact.

    Args:
        input: (N, C) or (N, C, ...), any strides.
        running_mean, running_whitening: (C,) and (num_groups, C / num_groups, C / num_groups), updated in place in
            training; both may be None there. A group keeps its own where the new ones would not be finite.
        weight, bias: (C,) or None.
        training: use the batch's statistics.
        num_groups: groups of neighbouring channels, each decorrelated by itself.
        iterations: of Newton's method; 0 divides by the root of the trace alone.
        momentum: share of the new batch in the running statistics.
        eps: added to the variances, in units of the input squared.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: one value per channel in training, or parameters of another size; nothing is updated then.
        ArgumentError: groups that do not divide the channels, a negative number of iterations, no running statistics
            where they are needed.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> x = torch.randn(64, 2) @ torch.tensor([[1.0, 0.0], [0.9, 0.5]])
        >>> y = functional.iter_norm(x, None, None, training=True, iterations=15)
        >>> torch.allclose(y.T @ y / 64, torch.eye(2), atol=1e-3)
        True

    Source: Huang et al. 2019, Iterative Normalization: Beyond Standardization towards Efficient Whitening,
    arXiv:1904.03441; decorrelated batch normalization: Huang et al. 2018, arXiv:1804.08450.
    """
    fused = (mask, lengths, residual, return_residual, activation)
    call = checked(TRAINING if training else EVALUATION, PATTERN, input, weight, bias, eps, fused)
    width = _width("iter_norm", input.shape[1], num_groups, iterations)
    _check_running(input, running_mean, running_whitening, (num_groups, width, width), training)
    plain = call.plain()
    # Autocast would take the products in half precision.
    with torch.autocast(input.device.type, enabled=False):
        rows, valid = _rows(plain.x, num_groups), _rows_of_mask(plain.x, plain.mask)
        rows = rows if valid is None else torch.where(valid, rows, 0)  # padding may be NaN, which times 0 is NaN
        if training and input.numel():
            counts = checked_counts("iter_norm", plain)  # before anything is updated
            centred, mean, values = _centred(rows, valid)
            covariance = (centred.transpose(1, 2) @ centred).to(mean.dtype) / values
            whitening = whitening_of(covariance, eps, iterations)
            if running_mean is not None and running_whitening is not None and not is_recomputing():
                some = None if counts is None else counts[0] > 0
                _update(running_mean, running_whitening, mean.detach(), whitening.detach(), momentum, some)
        elif running_mean is not None and running_whitening is not None:
            centred = rows - running_mean.to(rows.dtype).view(num_groups, 1, width)
            whitening = running_whitening
        else:  # an empty batch
            centred, whitening = rows, rows.new_zeros(num_groups, width, width)
        y = centred @ whitening.to(rows.dtype)  # symmetric
        for parameter, apply in ((weight, torch.mul), (bias, torch.add)):
            y = y if parameter is None else apply(y, parameter.to(y.dtype).view(num_groups, 1, width))
        places = plain.x.movedim(1, -1).shape
        y = y.transpose(0, 1).reshape(places).movedim(-1, 1).to(input.dtype)
    return call.finished(dense_like(plain.x, y), plain.x)


def check_groups(name: str, channels: int, num_groups: int, iterations: int) -> None:
    """The groups divide the channels, and no number is too small.

    Raises:
        ArgumentError: otherwise.
    """
    _width(name, channels, num_groups, iterations)


def _width(name: str, channels: int, num_groups: int, iterations: int) -> int:
    """The channels of a group."""
    if whole_number(f"num_groups of {name}", num_groups) < 1 or channels % num_groups:
        remedy = f"the nearest that does is {nearest_divisor(channels, num_groups)}" if num_groups > 0 else "use 1"
        raise ArgumentError(
            f"num_groups of {name} must divide the channels, got {num_groups} groups for {channels} channels: {remedy}"
        )
    if whole_number(f"iterations of {name}", iterations) < 0:
        raise ArgumentError(f"iterations of {name} must not be negative, got {iterations}: the paper uses 5")
    return channels // num_groups


def _check_running(
    x: Tensor, mean: Tensor | None, whitening: Tensor | None, shape: tuple[int, ...], training: bool
) -> None:
    if not training and (mean is None or whitening is None):
        raise ArgumentError(
            "iter_norm needs running_mean and running_whitening outside training, got None: "
            "pass both, or training=True to use the batch's statistics"
        )
    check_parameter("iter_norm", "running_mean", mean, (x.shape[1],), x)
    check_parameter("iter_norm", "running_whitening", whitening, shape, x)


def _rows(x: Tensor, groups: int) -> Tensor:
    """(groups, values, channels of a group), in the arithmetic of x."""
    wide = x.to(arithmetic_dtype(x.dtype)).movedim(1, -1)
    return wide.reshape(-1, groups, wide.shape[-1] // groups).transpose(0, 1)


def _rows_of_mask(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask as (1, values, 1)."""
    return None if mask is None else mask.expand(x.shape[0], 1, *x.shape[2:]).reshape(1, -1, 1)


def _centred(rows: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Any]:
    """The rows without their mean, 0 at padding, the mean (groups, 1, width), and the number of valid rows."""
    values: Any = rows.shape[1] if valid is None else valid.sum().clamp(min=1)
    mean = rows.sum(1, keepdim=True) / values
    centred = rows - mean
    centred = centred if valid is None else torch.where(valid, centred, 0)
    # What the rounding of the mean has left: a constant for the gradient, since without rounding it is 0.
    rest = centred.detach().sum(1, keepdim=True) / values
    wide = working_dtype(rows)
    mean, centred = mean.to(wide) + rest.to(wide), centred - rest
    return centred if valid is None else torch.where(valid, centred, 0), mean, values


def whitening_of(covariance: Tensor, eps: float, iterations: int) -> Tensor:
    """The whitening matrices of covariance matrices (groups, width, width), by Newton's iterations: see `iter_norm`."""
    one = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device).expand_as(covariance)
    covariance = covariance + eps * one
    trace = covariance.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
    root, other = one, covariance / trace
    # The iterates of P <- (3 P - P P P S) / 2, with other = S P: in one matrix alone rounding errors would grow.
    for _ in range(iterations):
        step = 1.5 * one - 0.5 * (root @ other)
        root, other = step @ root, other @ step
    return root / trace.sqrt()


def _update(
    running_mean: Tensor,
    running_whitening: Tensor,
    mean: Tensor,
    whitening: Tensor,
    momentum: float,
    some: Tensor | None,
) -> None:
    """A group keeps its statistics where the new ones would not be finite, and all do if there is not `some` value."""
    with torch.no_grad():
        new_mean = towards(running_mean, mean.flatten(), momentum)
        new_whitening = towards(running_whitening, whitening, momentum)
        finite = new_mean.view(len(whitening), -1).isfinite().all(1) & new_whitening.isfinite().all(2).all(1)
        finite = finite if some is None else finite & some
        by_channel = finite[:, None].expand(len(whitening), whitening.shape[-1]).reshape(-1)
        store(running_mean, torch.where(by_channel, new_mean, running_mean))
        store(running_whitening, torch.where(finite[:, None, None], new_whitening, running_whitening))
