"""Gradients of the operators, of any order, and the way in for everything above."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from normkit.kernels import ops, reference
from normkit.pattern import parse


def _vjp(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], upstream: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients through a reference function, differentiable again where the caller asks for that."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [t if again and t.requires_grad else t.detach().requires_grad_() for t in inputs]
        pairs = [(y, g) for y, g in zip(function(*leaves), upstream, strict=True) if g is not None]
        return torch.autograd.grad(
            [y for y, _ in pairs], leaves, [g for _, g in pairs], create_graph=again, allow_unused=True
        )


def _shaped(flat: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A parameter's gradient in the parameter's shape and dtype."""
    shaped = flat if len(shape) == 1 else flat.view(shape)
    return shaped if shaped.dtype is dtype else shaped.to(dtype)


def _normalize_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, ctx.pattern, ctx.eps, ctx.center = inputs
    _, mean, std = output
    ctx.save_for_backward(x, mean, std, weight)
    ctx.bias_like = None if bias is None else (bias.shape, bias.dtype)
    ctx.set_materialize_grads(False)


def _normalize_backward(
    ctx: Any, dy: Tensor | None, dmean: Tensor | None, dstd: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, mean, std, weight = ctx.saved_tensors
    dx = dweight = dbias = None
    if dy is not None:
        want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
        dx, dweight, dbias = _gradients(
            dy, x, mean, std, weight, ctx.pattern, ctx.eps, ctx.center, False, want_x, want_weight, want_bias
        )
        dweight = _shaped(dweight, weight.shape, weight.dtype) if want_weight else None
        dbias = _shaped(dbias, *ctx.bias_like) if want_bias else None
        dx = dx if want_x else None
    if (dmean is not None and ctx.center) or dstd is not None:

        def moments(leaf: Tensor) -> Sequence[Tensor]:
            return reference.normalize(leaf, None, None, parse(ctx.pattern), ctx.eps, ctx.center)[1:]

        (extra,) = _vjp(moments, [x], [dmean if ctx.center else None, dstd])
        dx = extra if dx is None or extra is None else dx + extra
    return dx, dweight, dbias, None, None, None


def _standardize_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mean, std, weight, bias, ctx.pattern, ctx.eps = inputs
    ctx.save_for_backward(x, mean, std, weight)
    ctx.bias_like = None if bias is None else (bias.shape, bias.dtype)


def _standardize_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, mean, std, weight = ctx.saved_tensors
    want_x, want_mean, want_std, want_weight, want_bias = ctx.needs_input_grad[:5]
    dx, dweight, dbias = _gradients(
        dy, x, mean, std, weight, ctx.pattern, ctx.eps, True, True, want_x, want_weight, want_bias
    )
    dmean = dstd = None
    if want_mean or want_std:

        def applied(m: Tensor, v: Tensor) -> Sequence[Tensor]:
            return [reference.standardize(x, m, v, weight, None, parse(ctx.pattern), ctx.eps)]

        dmean, dstd = _vjp(applied, [mean, std], [dy])
    return (
        dx if want_x else None,
        dmean,
        dstd,
        _shaped(dweight, weight.shape, weight.dtype) if want_weight else None,
        _shaped(dbias, *ctx.bias_like) if want_bias else None,
        None,
        None,
    )


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, x, mean, std, weight, ctx.pattern, ctx.eps, ctx.center, ctx.fixed, *ctx.want = inputs
    ctx.save_for_backward(dy, x, mean, std, weight)
    ctx.set_materialize_grads(False)


def _backward_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives. The moments are functions of x, and their share is counted with x."""
    dy, x, mean, std, weight = ctx.saved_tensors
    given = (mean, std) if ctx.fixed else None
    leaves = [dy, x] if weight is None else [dy, x, weight]
    wanted = [g if want else None for g, want in zip(upstream, ctx.want, strict=True)]

    def gradients(dy: Tensor, x: Tensor, weight: Tensor | None = None) -> Sequence[Tensor]:
        return reference.backward(dy, x, weight, parse(ctx.pattern), ctx.eps, ctx.center, given)

    out: tuple[Tensor | None, ...] = (None,) * len(leaves)
    if any(g is not None for g in wanted):
        out = _vjp(gradients, leaves, wanted)
    return out[0], out[1], None, None, (out[2] if weight is not None else None), *(None,) * 7


torch.library.register_autograd(
    "normkit::normalize", _normalize_backward, setup_context=_normalize_context, lib=ops.library
)
torch.library.register_autograd(
    "normkit::standardize", _standardize_backward, setup_context=_standardize_context, lib=ops.library
)
torch.library.register_autograd(
    "normkit::backward", _backward_backward, setup_context=_backward_context, lib=ops.library
)


# The way in -----------------------------------------------------------------------------------------------
#
# Through the dispatcher and a registered gradient a call costs 50 us, most of it Python around the kernel. Where
# nothing watches (no tracing, no transform, no tensor subclass) the same bodies are called directly: 12 us.


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        out = ops.normalize(*inputs)
        _normalize_context(ctx, inputs, out)
        return out

    backward = staticmethod(_normalize_backward)


class _Standardize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = ops.standardize(*inputs)
        _standardize_context(ctx, inputs, y)
        return y

    backward = staticmethod(_standardize_backward)


_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def _is_watched(x: Tensor) -> bool:
    """Whether something other than plain eager execution may want to see the operator itself."""
    return (
        type(x) not in _PLAIN_TYPES
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _gradients(dy: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    if torch.is_grad_enabled() or _is_watched(dy) or _is_watched(x):
        out: tuple[Tensor, Tensor, Tensor] = torch.ops.normkit.backward.default(dy, x, *rest)
        return out
    return ops.backward(dy, x, *rest)


def normalized(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, pattern: str, eps: float, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and std of ``normkit::normalize``."""
    run = ops.normalize
    if _is_watched(x):
        run = torch.ops.normkit.normalize.default
    elif _wants_gradient(x, weight, bias):
        run = _Normalize.apply
    return run(x, weight, bias, pattern, eps, center)


def standardized(
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
) -> Tensor:
    """y of ``normkit::standardize``."""
    run = ops.standardize
    if _is_watched(x):
        run = torch.ops.normkit.standardize.default
    elif _wants_gradient(x, mean, std, weight, bias):
        run = _Standardize.apply
    return run(x, mean, std, weight, bias, pattern, eps)
