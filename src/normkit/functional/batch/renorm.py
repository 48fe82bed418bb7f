"""Batch renormalization: batch normalization corrected towards its running statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from normkit.errors import ArgumentError
from normkit.functional.batch.update import Statistics, checked_update, normalized, updated_towards
from normkit.functional.call.recompute import as_at_first
from normkit.functional.call.spec import run
from normkit.functional.extras import Fusions, Output
from normkit.kernels.context import is_watched
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.operator import library
from normkit.kernels.sharded import replicated


@overload
def batch_renorm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    r_max: float = 3.0,
    d_max: float = 5.0,
    **fused: Unpack[Fusions],
) -> tuple[Tensor, Statistics]: ...
@overload
def batch_renorm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    r_max: float = 3.0,
    d_max: float = 5.0,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Fusions],
) -> tuple[tuple[Tensor, Tensor], Statistics]: ...
@overload
def batch_renorm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    r_max: float = 3.0,
    d_max: float = 5.0,
    *,
    return_residual: bool,
    **fused: Unpack[Fusions],
) -> tuple[Output, Statistics]: ...
def batch_renorm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    r_max: float = 3.0,
    d_max: float = 5.0,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
) -> tuple[Output, Statistics]:
    """Normalize by the batch, then correct towards what the running statistics would have given.

    ``y = ((x - mean) / s * r + d) * weight + bias`` with ``r = clip(s / s_run, 1 / r_max, r_max)`` and
    ``d = clip((mean - mean_run) / s_run, -d_max, d_max)``, where ``s = sqrt(var + eps)``. No gradient flows
    through r and d. Without limits y is what evaluation gives; at r_max = 1 and d_max = 0 it is batch norm.

    Args:
        input: (N, C) or (N, C, ...), any strides.
        running_mean, running_var: (C,), left as they are.
        weight, bias: (C,) or None.
        momentum: share of the new batch in the new statistics.
        eps: added to both variances, in units of the input squared.
        r_max: largest correction of the scale, at least 1.
        d_max: largest correction of the mean, in standard deviations, at least 0.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.

    Returns:
        The result, and the new statistics as `batch_norm_update` has them.

    Raises:
        ArgumentError: r_max below 1, d_max below 0.
        ShapeError: one value per channel, or parameters of another size.

    Example:
        >>> import torch
        >>> from normkit.functional import batch_renorm
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> y, _ = batch_renorm(x, torch.zeros(1), torch.ones(1), eps=0.0)
        >>> y.flatten()
        tensor([1., 3.])

    Source: Ioffe 2017, arXiv:1702.03275.
    """
    fused = (mask, lengths, residual, return_residual, activation)
    check_limits("batch_renorm", r_max, d_max)
    call = checked_update("batch_renorm", input, running_mean, running_var, weight, bias, eps, fused)
    old = Statistics(running_mean, running_var)
    if not input.numel():
        return run(call), Statistics(*(statistic.clone() for statistic in old))
    plain, dtype = call.plain(), arithmetic_dtype(input.dtype)
    own = normalized("batch_renorm", plain._replace(weight=None, bias=None))
    # As transforms see it, the formula; they have no second forward.
    correct = _correction if is_watched(own.mean) else _kept_correction
    if torch.compiler.is_compiling():
        correct = torch.ops.normkit.renorm_correction.default
    run_mean, run_var = (replicated(statistic.detach(), own.mean) for statistic in old)
    scale, shift = correct(own.mean, own.std, run_mean, run_var, eps, r_max, d_max)
    if weight is not None:
        scale, shift = scale * weight.to(dtype), shift * weight.to(dtype)
    if bias is not None:
        shift = shift + bias.to(dtype)
    shape = [-1, *[1] * (input.dim() - 2)]
    y = torch.addcmul(shift.view(shape), own.y.to(dtype), scale.view(shape)).to(input.dtype)
    return call.finished(y, plain.x), updated_towards(old, own.mean, own.unbiased(), momentum, own.values)


def check_limits(name: str, r_max: float, d_max: float) -> None:
    """The limits leave batch norm possible."""
    if not r_max >= 1:
        raise ArgumentError(f"r_max of {name} must be at least 1, got {r_max}: 1 is batch norm, the paper uses up to 3")
    if not d_max >= 0:
        raise ArgumentError(
            f"d_max of {name} must not be negative, got {d_max}: 0 is batch norm, the paper uses up to 5"
        )


def _correction(
    mean: Tensor, std: Tensor, running_mean: Tensor, running_var: Tensor, eps: float, r_max: float, d_max: float
) -> tuple[Tensor, Tensor]:
    """r and d of batch renormalization."""
    run = (running_var.to(std.dtype) + eps).sqrt()
    r = ((std.square() + eps).sqrt() / run).clamp(1 / r_max, r_max)
    return r, ((mean - running_mean.to(mean.dtype)) / run).clamp(-d_max, d_max)


def _kept_correction(mean: Tensor, std: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The same; a batch that activation checkpointing computes again gets the r and d of the first time."""
    r, d = as_at_first("batch_renorm", mean, std, *_correction(mean, std, *rest))
    return r, d


# An operator for torch.compile, which would else compute r and d again in backward, from statistics updated since.
library.define(
    "renorm_correction(Tensor mean, Tensor std, Tensor running_mean, Tensor running_var, float eps, float r_max,"
    " float d_max) -> (Tensor r, Tensor d)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.impl("renorm_correction", _kept_correction, "CompositeExplicitAutograd")


@torch.library.register_fake("normkit::renorm_correction", lib=library)  # type: ignore[untyped-decorator]
def _(mean: Tensor, std: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(std), torch.empty_like(mean)
