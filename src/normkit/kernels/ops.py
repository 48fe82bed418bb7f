"""The operators: schema, shapes for tracing, gradients; runs a plan on a backend.

Three operators serve every method, because the region is an argument, as text:
``normkit::normalize``, ``normkit::standardize`` (moments given) and ``normkit::backward`` (of both).
Statistics are flat, in the order of the kept axes; so are weight and bias, in the order of the features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from normkit.kernels import reference
from normkit.kernels.native import native
from normkit.kernels.reference import arithmetic_dtype
from normkit.pattern import Region, parse
from normkit.plan import Plan, Prepare, plan

_library = torch.library.Library("normkit", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_library.define(
    "normalize(Tensor x, Tensor? weight, Tensor? bias, str pattern, float eps, bool center)"
    " -> (Tensor y, Tensor mean, Tensor std)",
    tags=_TAGS,
)
_library.define(
    "standardize(Tensor x, Tensor mean, Tensor std, Tensor? weight, Tensor? bias, str pattern, float eps) -> Tensor",
    tags=_TAGS,
)
_library.define(
    "backward(Tensor dy, Tensor x, Tensor mean, Tensor std, Tensor? weight, str pattern, float eps,"
    " bool center, bool fixed, bool want_x, bool want_weight, bool want_bias)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)",
    tags=_TAGS,
)


# What a plan asks of tensors ------------------------------------------------------------------------------


def _reorder(t: Tensor, sizes: Sequence[int], axes: Sequence[int], *, to_memory: bool) -> Tensor:
    """A flat tensor over some axes, from their logical order to their order in memory, or back."""
    logical = sorted(axes)
    order = [logical.index(axis) for axis in axes]
    if to_memory:
        return t.reshape([sizes[axis] for axis in logical]).permute(order).reshape(-1)
    back = [order.index(i) for i in range(len(order))]
    return t.reshape([sizes[axis] for axis in axes]).permute(back).reshape(-1)


class _Call:
    """One tensor under one plan: the copies it needs on the way in, and the way back out."""

    def __init__(self, x: Tensor, region: Region) -> None:
        self.shape = x.shape
        self.plan: Plan = plan(region, x.shape, x.stride())
        if self.plan.prepare is Prepare.DENSE:
            x = x.clone()
            self.plan = plan(region, x.shape, x.stride())
        self.like = x
        self.x = x if self.plan.prepare is Prepare.AS_IS else self.into(x)
        self.stat = arithmetic_dtype(x.dtype)

    def into(self, t: Tensor) -> Tensor:
        """Another tensor of x's shape, laid out as the kernel expects x."""
        if t.stride() != self.like.stride():
            t = torch.empty_like(self.like, dtype=t.dtype).copy_(t)
        if self.plan.prepare is not Prepare.REGROUP:
            return t
        return t.reshape(self.plan.sizes).permute(self._order()).contiguous()

    def out(self, t: Tensor) -> Tensor:
        """A result of the kernel, laid out as x."""
        if self.plan.prepare is not Prepare.REGROUP:
            return t
        order = self._order()
        back = [order.index(i) for i in range(len(order))]
        return torch.empty_like(self.like).copy_(t.permute(back).reshape(self.shape))

    def _order(self) -> list[int]:
        ones = [i for i, size in enumerate(self.plan.sizes) if size == 1]
        return [*ones, *self.plan.memory]

    def parameter(self, t: Tensor | None) -> Tensor | None:
        if t is None or (self.plan.features_in_order and t.dtype == self.stat and t.is_contiguous()):
            return t
        if not self.plan.features_in_order:
            t = _reorder(t, self.plan.sizes, self.plan.features, to_memory=True)
        return t.to(self.stat).contiguous()

    def parameter_back(self, t: Tensor) -> Tensor:
        if self.plan.features_in_order or t.numel() == 0:
            return t
        return _reorder(t, self.plan.sizes, self.plan.features, to_memory=False)

    def statistic(self, t: Tensor) -> Tensor:
        if t.numel() and not self.plan.kept_in_order:
            t = _reorder(t, self.plan.sizes, self.plan.kept, to_memory=True)
        return t if t.dtype == self.stat and t.is_contiguous() else t.to(self.stat).contiguous()

    def statistic_back(self, t: Tensor) -> Tensor:
        if self.plan.kept_in_order or t.numel() == 0:
            return t
        return _reorder(t, self.plan.sizes, self.plan.kept, to_memory=False)


def _use_native(x: Tensor) -> bool:
    return x.is_cpu and x.numel() > 0 and native().loaded


def _dense_like(x: Tensor, y: Tensor) -> Tensor:
    """Layout in = layout out, for results of the reference."""
    out = torch.empty_like(x)
    return y if y.stride() == out.stride() else out.copy_(y)


# The operators --------------------------------------------------------------------------------------------


def _normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, pattern: str, eps: float, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    region = parse(pattern)
    if not _use_native(x):
        y, mean, std = reference.normalize(x, weight, bias, region, eps, center)
        return _dense_like(x, y), mean, std
    call = _Call(x, region)
    y, mean, std = torch.ops.normkit_native.normalize.default(
        call.x, call.parameter(weight), call.parameter(bias), *call.plan.numbers, eps, center
    )
    return call.out(y), call.statistic_back(mean), call.statistic_back(std)


def _standardize(
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
) -> Tensor:
    region = parse(pattern)
    if not _use_native(x):
        return _dense_like(x, reference.standardize(x, mean, std, weight, bias, region, eps))
    call = _Call(x, region)
    y = torch.ops.normkit_native.standardize.default(
        call.x,
        call.statistic(mean),
        call.statistic(std),
        call.parameter(weight),
        call.parameter(bias),
        *call.plan.numbers,
        eps,
    )
    return call.out(y)


def _backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    weight: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    fixed: bool,
    want_x: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    region = parse(pattern)
    if not _use_native(x):
        grads = reference.backward(dy, x, weight, region, eps, center, (mean, std) if fixed else None)
        none = x.new_empty(0, dtype=arithmetic_dtype(x.dtype))
        return (
            _dense_like(x, grads.x) if want_x else none,
            grads.weight if want_weight else none.clone(),
            grads.bias if want_bias else none.clone(),
        )
    call = _Call(x, region)
    dx, dweight, dbias = torch.ops.normkit_native.backward.default(
        call.into(dy),
        call.x,
        call.statistic(mean),
        call.statistic(std),
        call.parameter(weight),
        *call.plan.numbers,
        eps,
        center,
        fixed,
        want_x,
        want_weight,
        want_bias,
    )
    return call.out(dx) if want_x else dx, call.parameter_back(dweight), call.parameter_back(dbias)


for _name, _body in {"normalize": _normalize, "standardize": _standardize, "backward": _backward}.items():
    _library.impl(_name, _body, "CompositeExplicitAutograd")


# Shapes for tracing ---------------------------------------------------------------------------------------


def _sizes(x: Tensor, pattern: str) -> tuple[int, int]:
    """Number of statistics and of weights."""
    levels = parse(pattern).levels(x.shape)
    cells = math.prod(level.size for level in levels if not level.reduced)
    return cells, math.prod(level.size for level in levels if level.feature)


@torch.library.register_fake("normkit::normalize", lib=_library)
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, pattern: str, eps: float, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    cells, _ = _sizes(x, pattern)
    dtype = arithmetic_dtype(x.dtype)
    return (
        torch.empty_like(x),
        x.new_empty(cells if center else 0, dtype=dtype),
        x.new_empty(cells, dtype=dtype),
    )


@torch.library.register_fake("normkit::standardize", lib=_library)
def _(
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("normkit::backward", lib=_library)
def _(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    weight: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    fixed: bool,
    want_x: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _, features = _sizes(x, pattern)
    dtype = arithmetic_dtype(x.dtype)
    return (
        torch.empty_like(x) if want_x else x.new_empty(0, dtype=dtype),
        x.new_empty(features if want_weight else 0, dtype=dtype),
        x.new_empty(features if want_bias else 0, dtype=dtype),
    )


# Gradients ------------------------------------------------------------------------------------------------


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
        dweight = dweight.view(weight.shape).to(weight.dtype) if want_weight else None
        dbias = dbias.view(ctx.bias_like[0]).to(ctx.bias_like[1]) if want_bias else None
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
        dweight.view(weight.shape).to(weight.dtype) if want_weight else None,
        dbias.view(ctx.bias_like[0]).to(ctx.bias_like[1]) if want_bias else None,
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
    "normkit::normalize", _normalize_backward, setup_context=_normalize_context, lib=_library
)
torch.library.register_autograd(
    "normkit::standardize", _standardize_backward, setup_context=_standardize_context, lib=_library
)
torch.library.register_autograd("normkit::backward", _backward_backward, setup_context=_backward_context, lib=_library)


# The way in -----------------------------------------------------------------------------------------------
#
# Through the dispatcher and a registered gradient a call costs 50 us, most of it Python around the kernel. Where
# nothing watches (no tracing, no transform, no tensor subclass) the same bodies are called directly: 12 us.


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        out = _normalize(*inputs)
        _normalize_context(ctx, inputs, out)
        return out

    backward = staticmethod(_normalize_backward)


class _Standardize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = _standardize(*inputs)
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
    return _backward(dy, x, *rest)


def normalized(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, pattern: str, eps: float, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and std of ``normkit::normalize``."""
    run = _normalize
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
    run = _standardize
    if _is_watched(x):
        run = torch.ops.normkit.standardize.default
    elif _wants_gradient(x, mean, std, weight, bias):
        run = _Standardize.apply
    return run(x, mean, std, weight, bias, pattern, eps)
