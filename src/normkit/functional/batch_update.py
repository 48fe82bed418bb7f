"""Batch normalization as a pure function, and its relatives: ghost batches and batch renormalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from normkit.errors import ArgumentError, ShapeError, whole_number
from normkit.functional._checks import check_call, check_channels, check_dimensions
from normkit.functional.batch import PATTERN, check_counts
from normkit.functional.extras import Call, Extras, Output, checked_extras
from normkit.functional.recompute import as_at_first
from normkit.functional.running import moved
from normkit.kernels import formula, operator
from normkit.kernels.context import is_transformed, is_watched
from normkit.kernels.dtypes import arithmetic_dtype, working_dtype
from normkit.kernels.formula import Arguments, counts_of
from normkit.kernels.operator import library
from normkit.pattern import parse


class Statistics(NamedTuple):
    """Running statistics of each channel."""

    mean: Tensor
    var: Tensor


def batch_norm_update(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **extras: Unpack[Extras],
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
        extras: mask, lengths, residual, activation, return_residual, as `normkit.functional.extras.Extras` has them.

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
    call = _checked("batch_norm_update", input, running_mean, running_var, weight, bias, eps, extras)
    if not input.numel():
        y = call.output(call.run(weight, bias, eps))
        return y, Statistics(running_mean.clone(), running_var.clone())
    s = call.summed()
    own = _normalized("batch_norm_update", s, call.mask, weight, bias, PATTERN, eps)
    old = Statistics(running_mean, running_var)
    return call.finished(own.y, s), moved_towards(old, own.mean, own.unbiased(), momentum, own.values)


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
    **extras: Unpack[Extras],
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
        extras: mask, lengths, residual, activation, return_residual, as `normkit.functional.extras.Extras` has them.

    Returns:
        The result, and the new statistics as `batch_norm_update` has them.

    Raises:
        ArgumentError: r_max below 1, d_max below 0.
        ShapeError: one value per channel, or parameters of another size.

    Example:
        >>> import torch
        >>> from normkit.functional.batch_update import batch_renorm
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> y, _ = batch_renorm(x, torch.zeros(1), torch.ones(1), eps=0.0)
        >>> y.flatten()
        tensor([1., 3.])

    Source: Ioffe 2017, arXiv:1702.03275.
    """
    check_limits("batch_renorm", r_max, d_max)
    call = _checked("batch_renorm", input, running_mean, running_var, weight, bias, eps, extras)
    if not input.numel():
        return batch_norm_update(input, running_mean, running_var, weight, bias, momentum, eps, **extras)
    s, dtype = call.summed(), arithmetic_dtype(input.dtype)
    own = _normalized("batch_renorm", s, call.mask, None, None, PATTERN, eps)
    # As transforms see it, the formula; they have no second forward.
    correct = _correction if is_watched(own.mean) else _kept_correction
    if torch.compiler.is_compiling():
        correct = torch.ops.normkit.renorm_correction.default
    scale, shift = correct(own.mean, own.std, running_mean.detach(), running_var.detach(), eps, r_max, d_max)
    if weight is not None:
        scale, shift = scale * weight.to(dtype), shift * weight.to(dtype)
    if bias is not None:
        shift = shift + bias.to(dtype)
    shape = [-1, *[1] * (input.dim() - 2)]
    y = torch.addcmul(shift.view(shape), own.y.to(dtype), scale.view(shape)).to(input.dtype)
    old = Statistics(running_mean, running_var)
    return call.finished(y, s), moved_towards(old, own.mean, own.unbiased(), momentum, own.values)


def ghost_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    virtual_batch_size: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **extras: Unpack[Extras],
) -> tuple[Output, Statistics | None]:
    """`batch_norm` in training of each `virtual_batch_size` samples by themselves, in the order of the batch.

    The new statistics move once, towards the averages of the chunks' means and unbiased variances, each chunk counted
    by its size. The last chunk holds what is left; if that is a single value per channel, it joins the chunk before it.

    Args:
        input: (N, C) or (N, C, ...), any strides.
        running_mean, running_var: (C,), left as they are; or None.
        virtual_batch_size: samples in a chunk.
        weight, bias: (C,) or None.
        momentum: share of the new batch in the new statistics.
        eps: added to the variance, in units of the input squared.
        extras: mask, lengths, residual, activation, return_residual, as `normkit.functional.extras.Extras` has them.

    Returns:
        The result, and the new statistics as `batch_norm_update` has them; None without old ones.

    Raises:
        ArgumentError: virtual_batch_size below 1.
        ShapeError: one value per channel in a chunk, or parameters of another size.

    Example:
        >>> import torch
        >>> from normkit.functional.batch_update import ghost_batch_norm
        >>> x = torch.tensor([[1.0], [3.0], [20.0], [60.0]])
        >>> ghost_batch_norm(x, None, None, 2, eps=0.0)[0].flatten()
        tensor([-1.,  1., -1.,  1.])

    Source: Hoffer, Hubara & Soudry 2017, arXiv:1705.08741.
    """
    if whole_number("virtual_batch_size", virtual_batch_size) < 1:
        raise ArgumentError(f"virtual_batch_size must be at least 1, got {virtual_batch_size}: give samples in a chunk")
    call = _checked("ghost_batch_norm", input, running_mean, running_var, weight, bias, eps, extras)
    old = None if running_mean is None or running_var is None else Statistics(running_mean, running_var)
    if not input.numel():
        return call.output(call.run(weight, bias, eps)), old
    samples, channels = input.shape[:2]
    each = input.numel() // (samples * channels)
    sizes = _chunks(samples, virtual_batch_size, each)
    if virtual_batch_size * each == 1:
        raise ShapeError(
            "ghost_batch_norm needs more than one value per channel in each chunk, for their variance to exist; got "
            f"virtual_batch_size=1 for shape {tuple(input.shape)}: use at least 2"
        )
    s = call.summed()
    even = sum(size == sizes[0] for size in sizes)
    # One call for all chunks of the same size, one more for another size.
    cuts = [even * sizes[0], samples - even * sizes[0]] if even < len(sizes) else [samples]
    masks = [None] * len(cuts) if call.mask is None else call.mask.split(cuts)
    parts = [
        _normalized("ghost_batch_norm", part, mask, weight, bias, f"(g={chunks} [b]) c [...]", eps)
        for part, mask, chunks in zip(s.split(cuts), masks, (even, 1), strict=False)
    ]
    y = call.finished(parts[0].y if len(parts) == 1 else torch.cat([part.y for part in parts]), s)
    if old is None:
        return y, None

    def by_chunk(of: Sequence[Tensor]) -> Tensor:
        return torch.cat([one.view(-1, channels) for one in of])

    mean, var = by_chunk([part.mean for part in parts]), by_chunk([part.unbiased() for part in parts])
    values = by_chunk([torch.as_tensor(part.values, device=mean.device).expand_as(part.mean) for part in parts])
    total = values.sum(0)
    shares = (values / total.clamp(min=1)).to(var.dtype)
    return y, moved_towards(old, (mean * shares).sum(0), (var * shares).sum(0), momentum, total)


def _correction(
    mean: Tensor, std: Tensor, running_mean: Tensor, running_var: Tensor, eps: float, r_max: float, d_max: float
) -> tuple[Tensor, Tensor]:
    """r and d of batch renormalization."""
    run = (running_var.to(std.dtype) + eps).sqrt()
    r = ((std.square() + eps).sqrt() / run).clamp(1 / r_max, r_max)
    return r, ((mean - running_mean.to(mean.dtype)) / run).clamp(-d_max, d_max)


def _kept_correction(mean: Tensor, std: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The same; a batch that activation checkpointing computes again gets what it got before the statistics moved."""
    r, d = as_at_first(mean, std, *_correction(mean, std, *rest))
    return r, d


# An operator for torch.compile, which else computes r and d again in backward, from statistics that have moved since.
library.define(
    "renorm_correction(Tensor mean, Tensor std, Tensor running_mean, Tensor running_var, float eps, float r_max,"
    " float d_max) -> (Tensor r, Tensor d)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.impl("renorm_correction", _kept_correction, "CompositeExplicitAutograd")


@torch.library.register_fake("normkit::renorm_correction", lib=library)  # type: ignore[untyped-decorator]
def _(mean: Tensor, std: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(std), torch.empty_like(mean)


def moved_towards(old: Statistics, mean: Tensor, var: Tensor, momentum: float, values: int | Tensor) -> Statistics:
    """The statistics after a batch of so many values; where there are none, or the new ones would not be finite, what
    they were."""
    wide = working_dtype(mean)
    old = Statistics(old.mean.detach(), old.var.detach())
    *new, _ = moved(*old, mean.to(wide), var.to(wide), momentum)
    if not isinstance(values, Tensor):
        return Statistics(*new) if values else old
    return Statistics(*(torch.where(values > 0, now, was) for now, was in zip(new, old, strict=True)))


def skipped_channels(
    input: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float, extras: Extras
) -> Tensor:
    """Whether each channel keeps its running statistics when it sees this batch: the new ones would not be finite."""
    call = checked_extras("batch_norm", input, PATTERN, extras)
    own = _normalized("batch_norm", call.summed(), call.mask, None, None, PATTERN, eps)
    return ~moved(running_mean, running_var, own.mean, own.unbiased(), momentum)[-1]


def check_limits(name: str, r_max: float, d_max: float) -> None:
    """The limits leave batch norm possible."""
    if not r_max >= 1:
        raise ArgumentError(f"r_max of {name} must be at least 1, got {r_max}: 1 is batch norm, the paper ends at 3")
    if not d_max >= 0:
        raise ArgumentError(f"d_max of {name} must not be negative, got {d_max}: 0 is batch norm, the paper ends at 5")


def _chunks(samples: int, size: int, each: int) -> list[int]:
    whole, rest = samples // size, samples % size  # not divmod: torch.compile has no rule for it
    sizes = [size] * whole
    if rest * each == 1 and sizes:
        sizes[-1] += rest
    elif rest:
        sizes.append(rest)
    return sizes


class _Normalized(NamedTuple):
    """A result, and the moments that it has been given, of so many values each; these without a gradient."""

    y: Tensor
    mean: Tensor
    std: Tensor
    values: int | Tensor

    def unbiased(self) -> Tensor:
        values, var = self.values, self.std.to(working_dtype(self.std)).square()
        if isinstance(values, Tensor):
            return var * (values / (values - 1).clamp(min=1)).to(var.dtype)
        return var * (values / max(values - 1, 1))


def _normalized(
    name: str, s: Tensor, mask: Tensor | None, weight: Tensor | None, bias: Tensor | None, pattern: str, eps: float
) -> _Normalized:
    a = Arguments(s, weight, bias, pattern, eps, True, mask=mask)
    counts = None
    if mask is not None:
        counts = counts_of(mask, s.shape, parse(pattern).levels(s.shape))
        check_counts(name, s, counts)
    # vmap takes plain torch as a whole, moments included.
    out = formula.norm(a) if not torch.compiler.is_compiling() and is_transformed() else operator.run(a, moments=True)
    mean, std = out.moments()
    return _Normalized(out.y, mean, std, s.numel() // mean.numel() if counts is None else counts)


def _checked(
    name: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    extras: Extras,
) -> Call:
    """The checks that all these functions share."""
    check_call(name, input, eps)
    check_dimensions(name, input, 2, "(N, C, ...)")
    check_channels(name, input, running_mean, running_var, weight, bias)
    if input.numel() == input.shape[1] > 0:
        raise ShapeError(
            f"{name} needs more than one value per channel, for their variance to exist; got one from shape "
            f"{tuple(input.shape)}: use a larger batch, group_norm, or running statistics by batch_norm"
        )
    return checked_extras(name, input, PATTERN, extras)
