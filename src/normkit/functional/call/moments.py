"""The moments of a call's cells, with their gradient: for methods that do more with them than standardize."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from normkit.kernels import formula, operator
from normkit.kernels.backend import Want
from normkit.kernels.context import is_traced, is_transformed, is_watched, wants_gradient
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import Arguments, Result
from normkit.kernels.regions import region_of


def moments(a: Arguments) -> tuple[Tensor | None, Tensor]:
    """Mean and standard deviation of each cell of `a.x`, flat, in the arithmetic dtype; no mean if none is subtracted.

    A cell of padding alone has 0 and 1.
    """
    out = with_moments(a._replace(weight=None, bias=None, residual=None, activation="none"))
    assert out.std is not None
    return (out.mean if a.center else None), out.std


def with_moments(a: Arguments) -> Result:
    """``normkit::norm`` with the moments, which have a gradient, too."""
    # vmap takes plain torch as a whole, moments included.
    return formula.norm(a) if not is_compiling() and is_transformed() else operator.run(a, moments=True)


def normalized_by(a: Arguments) -> Tensor:
    """``normkit::norm`` by given moments that have a gradient themselves, for a pattern that splits no dimension."""
    if not is_compiling() and is_transformed():
        return formula.norm(a).y  # transforms of torch.func take plain torch as a whole, the moments included
    if is_watched(a.x) or is_traced() or not wants_gradient(a.x, a.weight, a.bias, a.mean, a.var):
        return operator.run(a).y
    return _normalized(a.x, a.weight, a.bias, a.mean, a.var, a)


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
    dx, dweight, dbias, *_ = operator.norm_backward(dy, a, True, want)
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
    return [1 if level.reduced else level.size for level in region_of(pattern).levels(x.shape)]


_normalized: Callable[..., Tensor] = _Normalized.apply
