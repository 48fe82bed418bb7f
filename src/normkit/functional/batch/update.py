"""Batch normalization as a pure function: it returns the new running statistics and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, Unpack, overload

import torch
from torch import Tensor

from normkit.functional.batch.norm import BATCH, PATTERN, check_batch
from normkit.functional.call.checks import check_parameter
from normkit.functional.call.running import updated
from normkit.functional.call.spec import Call, Fused, Spec, checked, checked_counts, run
from normkit.functional.extras import Fusions, Output
from normkit.kernels import formula, operator
from normkit.kernels.context import is_transformed
from normkit.kernels.dtypes import working_dtype
from normkit.kernels.formula import Arguments
from normkit.kernels.sharded import replicated


class Statistics(NamedTuple):
    """Running statistics of each channel."""

    mean: Tensor
    var: Tensor


@overload
def batch_norm_update(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **fused: Unpack[Fusions],
) -> tuple[Tensor, Statistics]: ...
@overload
def batch_norm_update(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Fusions],
) -> tuple[tuple[Tensor, Tensor], Statistics]: ...
@overload
def batch_norm_update(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_residual: bool,
    **fused: Unpack[Fusions],
) -> tuple[Output, Statistics]: ...
def batch_norm_update(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
) -> tuple[Output, Statistics]:
    """`batch_norm` in training that changes nothing and returns the new running statistics.

    The formulas are those of `batch_norm`. It runs under ``torch.func``: ``grad``, ``vjp``, ``vmap``, also over models
    whose statistics are stacked. The statistics carry no gradient.

    Args:
        input: (N, C) or (N, C, ...), any strides.
        running_mean, running_var: (C,), left as they are.
        weight, bias: (C,) or None.
        momentum: share of the new batch in the new statistics.
        eps: added to the variance, in units of the input squared.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.

    Returns:
        The result, as `batch_norm` has it, and the new statistics; a channel whose moments are not finite keeps its
        old ones, and so do all for an empty batch.

    Raises:
        ShapeError: one value per channel, or parameters of another size.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> y, new = functional.batch_norm_update(x, torch.zeros(1), torch.ones(1), eps=0.0)
        >>> y.flatten(), new.mean, new.var
        (tensor([-1.,  1.]), tensor([0.2000]), tensor([1.1000]))

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167.
    """
    fused = (mask, lengths, residual, return_residual, activation)
    call = checked_update("batch_norm_update", input, running_mean, running_var, weight, bias, eps, fused)
    if not input.numel():
        return run(call), Statistics(running_mean.clone(), running_var.clone())
    plain = call.plain()
    own = normalized("batch_norm_update", plain)
    old = Statistics(running_mean, running_var)
    return call.finished(own.y, plain.x), updated_towards(old, own.mean, own.unbiased(), momentum, own.values)


def checked_update(
    name: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    fused: Fused,
) -> Call:
    """The call of a function that returns new statistics, after all checks; its moments are the batch's."""
    check = partial(check_batch, where="", remedy="running statistics by batch_norm")
    call = checked(Spec(name, check), PATTERN, input, weight, bias, eps, fused)
    for what, statistic in (("running_mean", running_mean), ("running_var", running_var)):
        check_parameter(name, what, statistic, (input.shape[1],), input)
    return call


class Normalized(NamedTuple):
    """A result and the moments that normalized it, each of `values` values; the moments have no gradient."""

    y: Tensor
    mean: Tensor
    std: Tensor
    values: int | Tensor

    def unbiased(self) -> Tensor:
        """The unbiased variance."""
        values, var = self.values, self.std.to(working_dtype(self.std)).square()
        if isinstance(values, Tensor):
            return var * (values / (values - 1).clamp(min=1)).to(var.dtype)
        return var * (values / max(values - 1, 1))


def normalized(name: str, a: Arguments) -> Normalized:
    """Normalize by the moments of `a.x`, and return these as well."""
    counts = checked_counts(name, a)
    # vmap takes plain torch as a whole, moments included.
    out = formula.norm(a) if not torch.compiler.is_compiling() and is_transformed() else operator.run(a, moments=True)
    mean, std = out.moments()
    return Normalized(out.y, mean, std, a.x.numel() // mean.numel() if counts is None else counts)


def updated_towards(old: Statistics, mean: Tensor, var: Tensor, momentum: float, values: int | Tensor) -> Statistics:
    """The statistics after a batch whose moments come from `values` values each.

    A channel keeps its old ones if it has no values, or if the new ones would not be finite.
    """
    wide = working_dtype(mean)
    old = Statistics(*(replicated(statistic.detach(), mean) for statistic in old))
    *new, _ = updated(*old, mean.to(wide), var.to(wide), momentum)
    if not isinstance(values, Tensor):
        return Statistics(*new) if values else old
    return Statistics(*(torch.where(values > 0, now, was) for now, was in zip(new, old, strict=True)))


def skipped_channels(
    input: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float, fused: Fused
) -> Tensor:
    """Whether each channel keeps its running statistics when it sees this batch: the new ones would not be finite."""
    call = checked(BATCH, PATTERN, input, None, None, eps, fused)
    own = normalized("batch_norm", call.plain())
    return ~updated(running_mean, running_var, own.mean, own.unbiased(), momentum)[-1]
