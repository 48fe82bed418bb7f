"""Switchable normalization: a learned mixture of the moments of instance, layer and batch normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Unpack, overload

import torch
from torch import Tensor

from normkit.errors import ArgumentError, ShapeError
from normkit.functional.call.checks import check_dimensions, check_parameter
from normkit.functional.call.moments import moments, normalized_by
from normkit.functional.call.recompute import is_recomputing
from normkit.functional.call.running import Running, update
from normkit.functional.call.spec import Spec, checked, checked_counts, run
from normkit.functional.extras import Fusions, Output
from normkit.kernels.dtypes import arithmetic_dtype, working_dtype
from normkit.kernels.formula import Arguments
from normkit.merging import mixed_moments

PATTERN = "b c [...]"


def _check(name: str, input: Tensor, _: Any) -> tuple[int, ...]:
    check_dimensions(name, input, 3, "(N, C, positions ...)")
    if input.shape[2:].numel() == 1:
        raise ShapeError(
            f"{name} needs more than one position, because the variance of a sample and channel needs two values; got "
            f"one from shape {tuple(input.shape)}: use batch_norm or layer_norm there"
        )
    return (input.shape[1],)


SWITCHABLE = Spec("switchable_norm", _check)


@overload
def switchable_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **fused: Unpack[Fusions],
) -> Tensor: ...
@overload
def switchable_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean_weight: Tensor,
    var_weight: Tensor,
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
def switchable_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_residual: bool,
    **fused: Unpack[Fusions],
) -> Output: ...
def switchable_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean_weight: Tensor,
    var_weight: Tensor,
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
    """Normalize each channel of each sample by a mixture of three means and three variances.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` with ``mean = sum of softmax(mean_weight) * (mean_in, mean_ln,
    mean_bn)`` and ``var = sum of softmax(var_weight) * (var_in, var_ln, var_bn)``: those of the sample and channel, of
    the sample, and of the channel over the batch. The second and third are merged from the first by Chan's formula.
    Outside training the running statistics are those of the channel.

    Args:
        input: (N, C, ...) with at least one dimension of positions, any strides.
        running_mean, running_var: (C,), updated in place in training as those of `batch_norm`; both may be None there.
        mean_weight, var_weight: (3,), the logits of the mixtures, in the order instance, layer, batch.
        weight, bias: (C,) or None.
        training: use the batch's statistics of each channel.
        momentum: share of the new batch in the running statistics.
        eps: added to the variance, in units of the input squared.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: a single position, or parameters of another size; nothing is updated then.
        ArgumentError: no running statistics where they are needed.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> x = torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]])
        >>> only_batch = torch.tensor([-100.0, -100.0, 0.0])
        >>> functional.switchable_norm(x, None, None, only_batch, only_batch, training=True, eps=0.0).flatten()
        tensor([-1.3416, -0.4472,  0.4472,  1.3416])

    Source: Luo et al. 2018, Differentiable Learning-to-Normalize via Switchable Normalization, arXiv:1806.10779.
    """
    fused = (mask, lengths, residual, return_residual, activation)
    running = (running_mean, running_var, momentum)
    call = checked(SWITCHABLE, PATTERN, input, weight, bias, eps, fused, statistics=running)
    for what, logits in (("mean_weight", mean_weight), ("var_weight", var_weight)):
        check_parameter("switchable_norm", what, logits, (3,), input)
    if not training and (running_mean is None or running_var is None):
        raise ArgumentError(
            "switchable_norm needs running_mean and running_var outside training, got None: "
            "pass both, or training=True to use the batch's statistics"
        )
    total = call.plain().x
    if not input.numel():
        # The logits take part with a gradient of 0.
        y = run(call._replace(return_residual=False))
        assert isinstance(y, Tensor)
        return call.output(y + 0 * (mean_weight.sum() + var_weight.sum()).to(y.dtype), total)
    a = call.arguments._replace(x=total, residual=None)
    sets = _Sets.of(a, checked_counts("switchable_norm", a._replace(pattern="[b] c [...]")))
    if not training:
        assert running_mean is not None
        assert running_var is not None
        sets = sets._replace(batch=_Moments(*(t.to(sets.own.mean.dtype)[None] for t in (running_mean, running_var))))
    elif running_mean is not None and running_var is not None and not is_recomputing():
        mean, var = (t.detach()[0] for t in sets.batch)
        dtype = arithmetic_dtype(input.dtype)
        update(Running(running_mean, running_var, sets.values, momentum), mean.to(dtype), var.sqrt().to(dtype))
    mean = _mixed(mean_weight, [each.mean for each in sets[:3]]).to(arithmetic_dtype(input.dtype))
    var = _mixed(var_weight, [each.var for each in sets[:3]])
    return call.output(normalized_by(a._replace(mean=mean, var=var)), total)


class _Moments(NamedTuple):
    """Mean and biased variance, in the working dtype."""

    mean: Tensor
    var: Tensor


class _Sets(NamedTuple):
    """The moments of each sample and channel (N, C), of each sample (N, 1), and of each channel (1, C).

    `values` is the number of values of a channel.
    """

    own: _Moments
    sample: _Moments
    batch: _Moments
    values: int | Tensor

    @classmethod
    def of(cls, a: Arguments, counts: Tensor | None) -> _Sets:
        """All three from the first, by Chan's formula; `counts` has the valid values of each channel."""
        samples, channels = a.x.shape[:2]
        mean, std = moments(a)
        assert mean is not None
        wide = working_dtype(std)
        own = _Moments(mean.to(wide).view(samples, channels), std.to(wide).square().view(samples, channels))
        even = torch.full_like(own.mean[:1, :1], 1 / channels)
        if counts is None or a.mask is None:
            values: int | Tensor = a.x.numel() // channels
            shares = torch.full_like(own.mean[:1, :1], 1 / samples)
        else:
            values = counts
            valid = a.mask.expand(samples, 1, *a.x.shape[2:]).flatten(1).sum(1, keepdim=True)
            shares = (valid / valid.sum().clamp(min=1)).to(own.mean.dtype)
        sample, batch = (_Moments(*mixed_moments(part, *own, dim)) for part, dim in ((even, 1), (shares, 0)))
        return cls(own, sample, batch, values)


def _mixed(logits: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """The mixture of three statistics, flat, with one value for each sample and channel."""
    shares = logits.to(parts[0].dtype).softmax(0)
    return sum(share * part for share, part in zip(shares.unbind(), parts, strict=True)).reshape(-1)  # type: ignore[union-attr]
