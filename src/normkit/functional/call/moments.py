"""The moments of each cell, with a gradient: for methods that mix moments before they normalize by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normkit.kernels import formula, operator
from normkit.kernels.backend import Want
from normkit.kernels.context import is_traced, is_transformed, is_watched, wants_gradient
from normkit.kernels.dtypes import arithmetic_dtype, working_dtype
from normkit.kernels.formula import Arguments, counts_of
from normkit.kernels.layout import dense_like
from normkit.pattern import parse


class Moments(NamedTuple):
    """Mean and biased variance of each cell, flat, in the working dtype."""

    mean: Tensor
    var: Tensor


def moments_of(a: Arguments) -> Moments:
    """The moments of `a.x`, for a pattern that splits no dimension.

    Unlike the standard deviations of the operator, the variances have a finite gradient at 0, too.
    """
    a = Arguments(a.x, None, None, a.pattern, 0.0, True, mask=a.mask)
    if is_watched(a.x) or is_traced():
        return Moments(*formula.moments(a))
    if wants_gradient(a.x):
        return Moments(*_differentiable(a.x, a.mask, a.pattern))
    return _moments(a)


def normalized_by(a: Arguments) -> Tensor:
    """``normkit::norm`` by given moments that have a gradient themselves, for a pattern that splits no dimension."""
    if not torch.compiler.is_compiling() and is_transformed():
        return formula.norm(a).y  # transforms of torch.func take plain torch as a whole, the moments included
    if is_watched(a.x) or is_traced() or not wants_gradient(a.x, a.weight, a.bias, a.mean, a.var):
        return operator.run(a).y
    return _normalized(a.x, a.weight, a.bias, a.mean, a.var, a)


def _moments(a: Arguments) -> Moments:
    mean, std = operator.norm(a).moments()
    wide = working_dtype(a.x)
    return Moments(mean.to(wide), std.to(wide).square())


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, pattern: str) -> tuple[Tensor, Tensor]:
        mean, var = _moments(Arguments(x, None, None, pattern, 0.0, True, mask=mask))
        ctx.pattern = pattern
        # The mean is saved as an output: it is a function of x, and a second derivative follows it.
        ctx.save_for_backward(x, mask, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, dmean: Tensor, dvar: Tensor) -> tuple[Tensor | None, ...]:
        """``dx = (dmean + 2 * dvar * (x - mean)) / values``, 0 at padding."""
        x, mask, mean = ctx.saved_tensors
        dtype, kept = arithmetic_dtype(x.dtype), _kept(x, ctx.pattern)
        values: Any = x.numel() // mean.numel()
        if mask is not None:
            values = counts_of(mask, x.shape, parse(ctx.pattern).levels(x.shape)).clamp(min=1).view(kept)
        shift, slope = ((t.view(kept) / values).to(dtype) for t in (dmean, 2 * dvar))
        dx = torch.addcmul(shift, slope, x.to(dtype) - mean.view(kept).to(dtype))
        dx = dx if mask is None else torch.where(mask, dx, 0)
        return dense_like(x, dx.to(x.dtype)), None, None


class _Normalized(torch.autograd.Function):
    """Unlike the operator's, its gradient of the moments takes one more pass, and is itself differentiable."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, a = inputs
        ctx.rest = a._replace(x=None, weight=None, bias=None, mean=None, var=None, mask=None)
        ctx.save_for_backward(*tensors, a.mask)
        return operator.norm(a, False).y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, mask = ctx.saved_tensors
        a = ctx.rest._replace(mask=mask)
        if torch.is_grad_enabled():
            grads = formula.vjp(lambda *leaves: [formula.norm(_filled(a, leaves)).y], tensors, [dy])
        else:
            grads = _gradients(_filled(a, tensors), dy, Want(True, *ctx.needs_input_grad[1:3]))
        pairs = zip(grads, tensors, ctx.needs_input_grad, strict=False)
        return *(g.view(t.shape).to(t.dtype) if g is not None and want else None for g, t, want in pairs), None


def _filled(a: Arguments, tensors: Sequence[Tensor | None]) -> Arguments:
    x, weight, bias, mean, var = tensors
    assert x is not None
    return a._replace(x=x, weight=weight, bias=bias, mean=mean, var=var)


def _gradients(a: Arguments, dy: Tensor, want: Want) -> tuple[Tensor | None, ...]:
    """``dmean = - sum of dx``, ``dvar = - sum of dx * (x - mean) / (2 * (var + eps))`` over each cell."""
    kept, wide = _kept(a.x, a.pattern), arithmetic_dtype(a.x.dtype)
    # dx is not rounded to half precision before it is summed.
    a, dy = a._replace(x=a.x.to(wide)), dy.to(wide)
    dx, dweight, dbias = operator.norm_backward(dy, a, True, want)
    assert dx is not None
    assert a.mean is not None
    assert a.var is not None
    reduced = [d for d, size in enumerate(kept) if size == 1]
    slope = dx * (a.x - a.mean.view(kept).to(wide))
    slope = slope if a.mask is None else torch.where(a.mask, slope, 0)
    dmean, dvar = (-t.sum(reduced).reshape(-1) for t in (dx, slope))
    return dx, dweight, dbias, dmean, dvar / (2 * (a.var + a.eps))


def _kept(x: Tensor, pattern: str) -> list[int]:
    """The shape of the cells, with size 1 in the reduced dimensions."""
    return [1 if level.reduced else level.size for level in parse(pattern).levels(x.shape)]


_normalized: Callable[..., Tensor] = _Normalized.apply
_differentiable: Callable[..., tuple[Tensor, Tensor]] = _Differentiable.apply
