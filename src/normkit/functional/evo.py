"""EvoNorm-B0 and EvoNorm-S0: a normalization and an activation in one formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from normkit.errors import ArgumentError, ShapeError, nearest_divisor, whole_number
from normkit.functional.call.checks import check_dimensions, check_parameter
from normkit.functional.call.moments import moments
from normkit.functional.call.precision import affine, as_dtype
from normkit.functional.call.recompute import is_recomputing
from normkit.functional.call.running import Running, update
from normkit.functional.call.spec import Spec, checked, checked_counts
from normkit.functional.extras import Fusions, Output
from normkit.kernels.formula import counts_of
from normkit.kernels.regions import region_of
from normkit.merging import mixed_moments

BATCH = "[b] c [...]"
INSTANCE = "b c [...]"


def _check(name: str, input: Tensor, _: Any) -> tuple[int, ...]:
    check_dimensions(name, input, 3, "(N, C, positions ...)")
    return (input.shape[1],)


def _check_batch(name: str, input: Tensor, _: Any) -> tuple[int, ...]:
    shape = _check(name, input, _)
    if input.numel() == input.shape[1] > 0:
        raise ShapeError(
            f"{name} in training needs more than one value per channel, because a variance needs two; got one from "
            f"shape {tuple(input.shape)}: use a larger batch, evo_norm_s0, or eval() to use the running variance"
        )
    return shape


def _check_groups(name: str, input: Tensor, num_groups: Any) -> tuple[int, ...]:
    shape = _check(name, input, None)
    num_groups = whole_number(f"num_groups of {name}", num_groups)
    if num_groups < 1 or shape[0] % num_groups:
        raise ArgumentError(
            f"num_groups of {name} must divide the number of channels, got {num_groups} groups for {shape[0]} "
            f"channels: the nearest that does is {nearest_divisor(shape[0], num_groups)}"
        )
    if input.numel() and shape[0] == num_groups and input.shape[2:].numel() == 1:
        raise ShapeError(
            f"{name} with {num_groups} groups gives each group one value of shape {tuple(input.shape)}, which has no "
            "variance: use fewer groups"
        )
    return shape


TRAINING = Spec("evo_norm_b0", _check_batch)
EVALUATION = Spec("evo_norm_b0", _check)
GROUPS = Spec("evo_norm_s0", _check_groups)


@overload
def evo_norm_b0(
    input: Tensor,
    running_var: Tensor | None,
    v: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **fused: Unpack[Fusions],
) -> Tensor: ...
@overload
def evo_norm_b0(
    input: Tensor,
    running_var: Tensor | None,
    v: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Fusions],
) -> tuple[Tensor, Tensor]: ...
@overload
def evo_norm_b0(
    input: Tensor,
    running_var: Tensor | None,
    v: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_residual: bool,
    **fused: Unpack[Fusions],
) -> Output: ...
def evo_norm_b0(
    input: Tensor,
    running_var: Tensor | None,
    v: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
) -> Output:
    """Normalize and activate: by the larger of the batch's deviation and a line through that of the sample.

    ``y = x / max(sqrt(batch_var + eps), v * x + sqrt(var + eps)) * weight + bias``: batch_var of a channel over batch
    and positions (``[b] c [...]``), var of a channel of one sample (``b c [...]``), both biased. In training batch_var
    is the batch's, and ``running = (1 - momentum) * running + momentum * batch`` with the unbiased variance, by the
    rules of `batch_norm`. Otherwise the running variance is used.

    Args:
        input: (N, C, positions ...), any strides.
        running_var: (C,), updated in place in training; may be None in training.
        v, weight, bias: (C,) or None, which counts as 1, 1 and 0.
        training: use the batch's variance.
        momentum: share of the new batch in the running variance.
        eps: added to both variances, in units of the input squared.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`; the formula is
            an activation already.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: one value per channel in training, or parameters of another size; nothing is updated then.
        ArgumentError: no running variance where it is needed.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> x, var = torch.tensor([[[1.0, 3.0]], [[-1.0, -3.0]]]), torch.ones(1)
        >>> functional.evo_norm_b0(x, var, training=True, eps=0.0).flatten(), var
        (tensor([ 0.4472,  0.7500, -0.4472, -1.3416]), tensor([1.5667]))

    Source: Liu et al. 2020, arXiv:2004.02967.
    """
    fused = (mask, lengths, residual, return_residual, activation)
    if not training and running_var is None:
        raise ArgumentError(
            "evo_norm_b0 needs running_var outside training, got None: pass it, or training=True to use the batch's "
            "variance"
        )
    spec = TRAINING if training else EVALUATION
    call = checked(spec, INSTANCE, input, weight, bias, eps, fused)
    for what, parameter in (("running_var", running_var), ("v", v)):
        check_parameter(call.name, what, parameter, (input.shape[1],), input)
    a, total = call.arguments, call.total()
    mean, std = moments(a._replace(x=total))
    assert mean is not None
    shape = [*input.shape[:2], *[1] * (input.dim() - 2)]
    mean, var = mean.view(shape), std.square().view(shape)
    if a.mask is not None:
        # A sample of padding alone has the deviation 1 for the kernels, and no values here.
        counts = counts_of(a.mask, input.shape, region_of(INSTANCE).levels(input.shape)).to(var.dtype).view(shape)
    if training:
        valid = checked_counts(call.name, a._replace(pattern=BATCH))
        if valid is None:
            batch_mean = mean.mean(0, keepdim=True)
            batch_var = (var + (mean - batch_mean).square()).mean(0, keepdim=True)
        else:
            share = counts / counts.sum(0, keepdim=True).clamp(min=1)
            batch_mean, batch_var = mixed_moments(share, mean, var, 0)
        if running_var is not None and input.numel() and not is_recomputing():
            values = input.numel() // input.shape[1] if valid is None else valid
            # The rules are those of a mean and a variance; this method keeps no mean.
            unkept = torch.zeros_like(running_var)
            found = (batch_mean.detach().flatten(), batch_var.detach().sqrt().flatten())
            update(Running(unkept, running_var, values, momentum), *found)
    else:
        assert running_var is not None
        batch_var = running_var.to(var.dtype).view(1, *shape[1:])
    x = call.valid(total)
    line = (var + eps).sqrt() + x if v is None else torch.addcmul((var + eps).sqrt(), x, _over(v, x))
    # By clamp, whose gradient is faster than that of maximum.
    weight, bias = (None if parameter is None else _over(parameter, x) for parameter in (weight, bias))
    return call.rounded(affine(x / line.clamp(min=(batch_var + eps).sqrt()), weight, bias), total)


@overload
def evo_norm_s0(
    input: Tensor,
    num_groups: int,
    v: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    **fused: Unpack[Fusions],
) -> Tensor: ...
@overload
def evo_norm_s0(
    input: Tensor,
    num_groups: int,
    v: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Fusions],
) -> tuple[Tensor, Tensor]: ...
@overload
def evo_norm_s0(
    input: Tensor,
    num_groups: int,
    v: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    return_residual: bool,
    **fused: Unpack[Fusions],
) -> Output: ...
def evo_norm_s0(
    input: Tensor,
    num_groups: int,
    v: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
) -> Output:
    """Normalize and activate: a swish of learned slope over the deviation of a group of channels of one sample.

    ``y = x * sigmoid(v * x) / sqrt(var + eps) * weight + bias``, the (biased) variance over the region
    ``b (g [c]) [...]``. It does not depend on the batch.

    Args:
        input: (N, C, positions ...), any strides.
        num_groups: number of groups; it divides C.
        v, weight, bias: (C,) or None, which counts as 1, 1 and 0.
        eps: added to the variance, in units of the input squared.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`; the formula is
            an activation already.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: the groups do not divide the channels.
        ShapeError: one value per group, or parameters of another size.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> functional.evo_norm_s0(torch.tensor([[[0.0, 2.0]]]), 1, eps=0.0)
        tensor([[[0.0000, 1.7616]]])

    Source: Liu et al. 2020, arXiv:2004.02967.
    """
    fused = (mask, lengths, residual, return_residual, activation)
    call = checked(GROUPS, f"b (g={num_groups} [c]) [...]", input, weight, bias, eps, fused, num_groups)
    check_parameter(call.name, "v", v, (input.shape[1],), input)
    a, total = call.arguments, call.total()
    _, std = moments(a._replace(x=total))
    scale = (std.square() + eps).rsqrt()
    if input.numel():
        each = scale.view(input.shape[0], num_groups, 1).expand(-1, -1, input.shape[1] // num_groups)
        scale = each.reshape(*input.shape[:2], *[1] * (input.dim() - 2))
    else:
        scale = scale.new_ones(())
    x = call.valid(total)
    y = x * torch.sigmoid(x if v is None else x * _over(v, x))
    scale = scale if weight is None else scale * _over(weight, x)
    return call.rounded(affine(y, scale, None if bias is None else _over(bias, x)), total)


def _over(parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter of the channels in the dtype of x and in a shape that broadcasts against it."""
    return as_dtype(parameter, x).view(-1, *[1] * (x.dim() - 2))
