"""Bounded functions of large tensors on a CPU, block by block: what is computed in between stays in the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normkit.functional.call.precision import affine, as_dtype
from normkit.kernels.context import is_watched
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import vjp

PART = 1 << 15
"""The fewest elements that torch gives a thread."""


class Curve(NamedTuple):
    """A bounded function, the same in place, and its slope from the argument and the value."""

    value: Callable[[Tensor], Tensor]
    value_: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]


TANH = Curve(torch.tanh, torch.tanh_, lambda _, y: torch.addcmul(y.new_ones(()), y, y, value=-1))
ERF = Curve(torch.erf, torch.erf_, lambda u, _: u.square().neg_().exp_().mul_(2 / math.sqrt(math.pi)))


def in_one(
    x: Tensor, alpha: Tensor, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None, curve: Curve
) -> Tensor:
    """``curve(alpha * x + shift) * weight + bias`` in the dtype of x, for parameters that broadcast against it."""
    return affine(curve.value(_argument(x, alpha, shift)), weight, bias)


def takes_blocks(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether `in_blocks` can and should be used: a large tensor on a CPU, whose rows share weight and bias."""
    if is_watched(x) or not x.is_cpu or x.numel() <= 8 * PART:
        return False
    return all(p is None or p.dim() < x.dim() for p in (weight, bias))


def in_blocks(
    x: Tensor, alpha: Tensor, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None, curve: Curve
) -> Tensor:
    """`in_one` in float32 or better, rounded once to the dtype of x; backward keeps x and computes the rest again."""
    return _in_blocks(x, alpha, shift, weight, bias, curve)


def _argument(x: Tensor, alpha: Tensor, shift: Tensor | None) -> Tensor:
    slope = as_dtype(alpha, x)
    return x * slope if shift is None else torch.addcmul(as_dtype(shift, x), x, slope)


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        *parameters, curve = rest
        ctx.save_for_backward(x, *parameters)
        ctx.curve = curve
        alpha, shift, weight, bias = _wide(parameters, x)
        y = torch.empty_like(x)
        # A part for each thread; no value depends on their number.
        for own, out in _blocks(PART * max(2, torch.get_num_threads()), x, y):
            z = curve.value_(_argument(own.to(arithmetic_dtype(x.dtype)), alpha, shift))
            z = z if weight is None else z.mul_(weight)
            out.copy_(z if bias is None else z.add_(bias))
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():

            def again(x: Tensor, alpha: Tensor, *rest: Any) -> list[Tensor]:
                shift, weight, bias = rest
                wide = x.to(arithmetic_dtype(x.dtype))
                return [in_one(wide, alpha, shift, weight, bias, ctx.curve).to(x.dtype)]

            return *vjp(again, [x, *parameters], [dy]), None
        wanted = ctx.needs_input_grad[1:5]
        alpha, shift, weight, _ = _wide(parameters, x)
        pairs = zip(parameters, wanted, strict=True)
        sums = [torch.zeros_like(p, dtype=torch.float64) if want else None for p, want in pairs]
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        # Blocks of one size: sums have the same bits with any number of threads.
        for own, upstream, out in _blocks(8 * PART, x, dy, x if dx is None else dx):
            own, upstream = (t.to(arithmetic_dtype(x.dtype)) for t in (own, upstream))
            u = _argument(own, alpha, shift)
            y = ctx.curve.value(u)
            of_weight = upstream * y if wanted[2] else None
            slope = ctx.curve.slope(u, y).mul_(upstream)
            slope = slope if weight is None else slope.mul_(weight)
            of_alpha = own * slope if wanted[0] else None
            for total, part in zip(sums, (of_alpha, slope, of_weight, upstream), strict=True):
                if total is not None:
                    total += part.sum_to_size([1] * (part.dim() - total.dim()) + [*total.shape]).view(total.shape)
            if dx is not None:
                out.copy_(slope.mul_(alpha))
        return dx, *(None if s is None else s.to(p.dtype) for s, p in zip(sums, parameters, strict=True)), None


def _wide(parameters: Sequence[Tensor | None], x: Tensor) -> list[Any]:
    """The parameters in the arithmetic of x."""
    return [None if p is None else p.to(arithmetic_dtype(x.dtype)) for p in parameters]


def _blocks(elements: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same blocks of tensors of one shape, cut along the first dimension, with about as many elements each."""
    rows = max(1, elements * len(tensors[0]) // tensors[0].numel())
    return zip(*(t.split(rows) for t in tensors), strict=True)


_in_blocks: Callable[..., Tensor] = _Blocks.apply
