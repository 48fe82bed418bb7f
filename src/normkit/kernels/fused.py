"""Normalization with padding left out, a residual added before and an activation applied after, in one pass.

``normkit::fused`` computes s = x + residual, the moments of the real elements of s (or takes those given), and
y = activation(standardized s * weight + bias), 0 where there is padding. `mask` is boolean, True for real, and has
size 1 in the channel dimensions of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from normkit.kernels import export
from normkit.kernels.autograd import input_shaped, is_watched, vjp, wants_gradient
from normkit.kernels.backend import kernels_for
from normkit.kernels.fit import Call, dense_like, direct_plan, is_ready
from normkit.kernels.ops import library, root
from normkit.kernels.reference import arithmetic_dtype, working_dtype
from normkit.pattern import Level, parse

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
"""What each name means, in the order of `Activation` in csrc/kernel.h."""
_NUMBER = {name: number for number, name in enumerate(ACTIVATIONS)}

_TAGS = (torch.Tag.pt2_compliant_tag,)
library.define(
    "fused(Tensor x, Tensor? residual, Tensor? mask, Tensor? mean, Tensor? var, Tensor? weight, Tensor? bias,"
    " str pattern, float eps, bool center, str activation) -> (Tensor y, Tensor sum, Tensor mean, Tensor std)",
    tags=_TAGS,
)
library.define(
    "fused_backward(Tensor dy, Tensor? dsum, Tensor x, Tensor? mask, Tensor mean, Tensor std_or_var,"
    " Tensor? weight, Tensor? bias, str pattern, float eps, bool center, bool fixed, str activation, bool want_weight,"
    " bool want_bias) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    tags=_TAGS,
)


class Fused(NamedTuple):
    """What comes out; `sum` is empty where there is no residual, `mean` and `std` where they were given."""

    y: Tensor
    sum: Tensor
    mean: Tensor
    std: Tensor


# The definition -------------------------------------------------------------------------------------------


def counts_of(mask: Tensor, shape: Sequence[int], levels: Sequence[Level]) -> Tensor:
    """The number of real elements in each cell, float64, flat in logical order."""
    shared = [mask.shape[level.dim] == 1 and shape[level.dim] != 1 for level in levels]
    counts = mask.reshape([1 if one else level.size for one, level in zip(shared, levels, strict=True)])
    reduced = [i for i, level in enumerate(levels) if level.reduced and not shared[i]]
    counts = counts.sum(reduced, keepdim=True, dtype=torch.float64) if reduced else counts.to(torch.float64)
    times = math.prod([level.size for one, level in zip(shared, levels, strict=True) if one and level.reduced])
    kept = [1 if level.reduced else level.size for level in levels]
    return (counts if times == 1 else counts * times).expand(kept).reshape(-1)


def reference(
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    activation: str,
) -> Fused:
    """In plain torch, differentiable: the oracle of the tests, and what runs where no kernel does."""
    stat = arithmetic_dtype(x.dtype)
    s = x if residual is None else x + residual
    levels = parse(pattern).levels(x.shape)
    sizes = [level.size for level in levels]
    reduced = [i for i, level in enumerate(levels) if level.reduced]
    kept = [1 if level.reduced else level.size for level in levels]
    values = s.to(working_dtype(x)).reshape(sizes)
    real = None if mask is None else mask.expand(x.shape).reshape(sizes)
    if real is not None:  # so that padding reaches nothing, not even as 0 * inf
        values = torch.where(real, values, 0)
        count = counts_of(mask, x.shape, levels).reshape(kept).clamp(min=1).to(values.dtype)  # type: ignore[arg-type]

    def average(t: Tensor) -> Tensor:
        if real is None:
            return t.mean(reduced, keepdim=True) if reduced else t
        t = torch.where(real, t, 0)
        return (t.sum(reduced, keepdim=True) if reduced else t) / count

    own_mean, own_std = x.new_empty(0, dtype=stat), x.new_empty(0, dtype=stat)
    given = var
    if given is None:
        middle = average(values) if center else values.new_zeros([1] * len(sizes))
        var = average((values - middle).square())
        if center:
            own_mean = middle.reshape(-1).to(stat)
        # The root has no slope at 0, and padding alone no deviation: it counts as 1.
        has_some = 1 if real is None else (real.sum(reduced, keepdim=True) > 0 if reduced else real)
        own_std = torch.where(torch.as_tensor(has_some, dtype=torch.bool, device=x.device), var, 1).detach()
        own_std = own_std.sqrt().expand(kept).reshape(-1).to(stat)
    else:
        assert mean is not None
        middle, var = mean.to(values.dtype).reshape(kept), given.to(values.dtype).reshape(kept)
    if real is not None and given is None:
        var = torch.where(real.any(reduced, keepdim=True) if reduced else real, var, 1)
    y = (values - middle) / (var + eps).sqrt()
    features = [level.size if level.feature else 1 for level in levels]
    if weight is not None:
        y = y * weight.to(y.dtype).reshape(features)
    if bias is not None:
        y = y + bias.to(y.dtype).reshape(features)
    y = ACTIVATIONS[activation](y)
    if real is not None:
        y = torch.where(real, y, 0)
    y = y.reshape(x.shape).to(x.dtype)
    return Fused(y, x.new_empty(0, dtype=stat) if residual is None else s, own_mean, own_std)


# The operators --------------------------------------------------------------------------------------------


def _mask_arguments(call: Call, mask: Tensor | None, pattern: str) -> tuple[Tensor | None, Tensor | None, int, int]:
    if mask is None:
        return None, None, 1, 1
    bytes_, channels, inner = call.mask(mask)
    counts = call.count(counts_of(mask, call.shape, parse(pattern).levels(call.shape)))
    return bytes_, counts, channels, inner


def fused(
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    activation: str,
) -> Fused:
    kernels = kernels_for(x)
    plan = -1 if kernels is None else direct_plan(pattern, x.shape, x.stride(), x.device.type)
    if kernels is None:
        out = reference(x, residual, mask, mean, var, weight, bias, pattern, eps, center, activation)
        total = out.sum if residual is None else dense_like(x, out.sum)
        return Fused(dense_like(x, out.y), total, out.mean, out.std)
    std, eps = (None, eps) if var is None else (root(var, eps, x), 0.0)
    as_it_is = plan >= 0 and mask is None and (residual is None or residual.stride() == x.stride())
    if as_it_is and all(is_ready(t, x) for t in (mean, std, weight, bias)):
        kind = _NUMBER[activation]
        return Fused(*kernels.fused(x, residual, None, None, 1, 1, mean, std, weight, bias, plan, eps, center, kind))
    call = Call(x, pattern)
    y, total, own_mean, own_std = kernels.fused(
        call.x,
        None if residual is None else call.into(residual),
        *_mask_arguments(call, mask, pattern),
        None if mean is None else call.statistic(mean),
        None if std is None else call.statistic(std),
        call.parameter(weight),
        call.parameter(bias),
        call.known_as,
        eps,
        center,
        _NUMBER[activation],
    )
    total = total if residual is None else call.out(total)
    return Fused(call.out(y), total, call.statistic_back(own_mean), call.statistic_back(own_std))


def fused_backward(
    dy: Tensor,
    dsum: Tensor | None,
    x: Tensor,
    mask: Tensor | None,
    mean: Tensor,
    std_or_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    fixed: bool,
    activation: str,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = kernels_for(x)
    if kernels is None:
        given: tuple[Tensor | None, Tensor | None] = (mean, std_or_var) if fixed else (None, None)
        leaves = [x, *(t for t in (weight, bias) if t is not None)]

        def value(x: Tensor, *parameters: Tensor) -> Sequence[Tensor]:
            rest = iter(parameters)
            w, b = (None if t is None else next(rest) for t in (weight, bias))
            return [reference(x, None, mask, *given, w, b, pattern, eps, center, activation).y]

        dx, *others = vjp(value, leaves, [dy])
        rest = iter(others)
        dw, db = (None if t is None else next(rest) for t in (weight, bias))
        none = x.new_empty(0, dtype=arithmetic_dtype(x.dtype))
        dx = dx if dsum is None else dx + dsum
        return (
            dense_like(x, dx),
            dw.reshape(-1).to(none.dtype) if want_weight and dw is not None else none,
            db.reshape(-1).to(none.dtype) if want_bias and db is not None else none.clone(),
        )
    std, eps = (root(std_or_var, eps, x), 0.0) if fixed else (std_or_var, eps)
    options: tuple[Any, ...] = (eps, center, fixed, _NUMBER[activation], want_weight, want_bias)
    if mask is None and dy.stride() == x.stride() and (dsum is None or dsum.stride() == x.stride()):
        plan = direct_plan(pattern, x.shape, x.stride(), x.device.type)
        if plan >= 0 and all(is_ready(t, x) for t in (mean, std, weight, bias)):
            return kernels.fused_backward(dy, dsum, x, None, None, 1, 1, mean, std, weight, bias, plan, *options)
    call = Call(x, pattern)
    dx, dweight, dbias = kernels.fused_backward(
        call.into(dy),
        None if dsum is None else call.into(dsum),
        call.x,
        *_mask_arguments(call, mask, pattern),
        call.statistic(mean),
        call.statistic(std),
        call.parameter(weight),
        call.parameter(bias),
        call.known_as,
        *options,
    )
    return call.out(dx), call.parameter_back(dweight), call.parameter_back(dbias)


for _name, _body in {"fused": fused, "fused_backward": fused_backward}.items():
    library.impl(_name, lambda *args, body=_body: tuple(body(*args)), "CompositeExplicitAutograd")


def _sizes(x: Tensor, pattern: str) -> tuple[int, int]:
    levels = parse(pattern).levels(x.shape)
    cells = math.prod(level.size for level in levels if not level.reduced)
    return cells, math.prod(level.size for level in levels if level.feature)


@torch.library.register_fake("normkit::fused", lib=library)
def _(
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    activation: str,
) -> tuple[Tensor, ...]:
    cells, _ = _sizes(x, pattern)
    stat = arithmetic_dtype(x.dtype)
    total = x.new_empty(0, dtype=stat) if residual is None else torch.empty_like(x)
    own = cells if var is None else 0
    return torch.empty_like(x), total, x.new_empty(own if center else 0, dtype=stat), x.new_empty(own, dtype=stat)


@torch.library.register_fake("normkit::fused_backward", lib=library)
def _(
    dy: Tensor,
    dsum: Tensor | None,
    x: Tensor,
    mask: Tensor | None,
    mean: Tensor,
    std_or_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    fixed: bool,
    activation: str,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, ...]:
    _, features = _sizes(x, pattern)
    stat = arithmetic_dtype(x.dtype)
    sizes = (features if want_weight else 0, features if want_bias else 0)
    return torch.empty_like(x), x.new_empty(sizes[0], dtype=stat), x.new_empty(sizes[1], dtype=stat)


# Gradients ------------------------------------------------------------------------------------------------


def _context(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    x, residual, mask, mean, var, weight, bias, ctx.pattern, ctx.eps, ctx.center, ctx.activation = inputs
    _, total, own_mean, own_std = output
    ctx.has_residual, ctx.fixed = residual is not None, var is not None
    moments = (mean, var) if ctx.fixed else (own_mean, own_std)
    # In the same order and shapes as in csrc/door_fused.h; kernels/autograd.py says why.
    ctx.channel_dims = (
        None if mask is None else sorted({level.dim for level in parse(ctx.pattern).levels(x.shape) if level.feature})
    )
    places = None if mask is None else mask.squeeze(ctx.channel_dims)
    ctx.save_for_backward(total if ctx.has_residual else x, places, weight, bias, *moments)
    ctx.mark_non_differentiable(own_mean, own_std)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, dsum: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, mask, weight, bias, mean, std_or_var = ctx.saved_tensors
    for dim in ctx.channel_dims or ():
        mask = mask.unsqueeze(dim)
    want_x, want_residual, _, want_mean, want_var, want_weight, want_bias, *_ = ctx.needs_input_grad
    dsum = dsum if ctx.has_residual else None
    if dy is None:
        return (dsum if want_x else None, dsum if want_residual else None, *(None,) * 9)
    rest = (ctx.pattern, ctx.eps, ctx.center, ctx.fixed, ctx.activation)
    dx, dweight, dbias = gradients(dy, dsum, x, mask, mean, std_or_var, weight, bias, *rest, want_weight, want_bias)
    dmean = dvar = None
    if ctx.fixed and (want_mean or want_var):

        def applied(m: Tensor, v: Tensor) -> Sequence[Tensor]:
            return [reference(x, None, mask, m, v, weight, bias, *rest[:3], ctx.activation).y]

        dmean, dvar = vjp(applied, [mean, std_or_var], [dy])
    return (
        dx if want_x else None,
        dx if want_residual else None,
        None,
        dmean,
        dvar,
        input_shaped(dweight, weight) if want_weight else None,
        input_shaped(dbias, bias) if want_bias else None,
        *(None,) * 4,
    )


def _second_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, dsum, x, mask, mean, std_or_var, weight, bias, *ctx.rest = inputs
    ctx.has_sum = dsum is not None
    ctx.save_for_backward(dy, x, mask, mean, std_or_var, weight, bias)
    ctx.set_materialize_grads(False)


def _second(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives, by the definition. The moments are functions of x, and their share is counted with x."""
    dy, x, mask, mean, std_or_var, weight, bias = ctx.saved_tensors
    pattern, eps, center, fixed, activation, want_weight, want_bias = ctx.rest
    given: tuple[Tensor | None, Tensor | None] = (mean, std_or_var) if fixed else (None, None)
    parameters = [t for t in (weight, bias) if t is not None]

    def first(dy: Tensor, x: Tensor, *parameters: Tensor) -> Sequence[Tensor]:
        def value(x: Tensor, *parameters: Tensor) -> Sequence[Tensor]:
            rest = iter(parameters)
            w, b = (None if t is None else next(rest) for t in (weight, bias))
            return [reference(x, None, mask, *given, w, b, pattern, eps, center, activation).y]

        dx, *others = vjp(value, [x, *parameters], [dy])
        rest = iter(others)
        dw, db = (None if t is None else next(rest) for t in (weight, bias))
        return [t for t, want in ((dx, True), (dw, want_weight), (db, want_bias)) if want and t is not None]

    wanted = [upstream[0], *(upstream[1:2] if want_weight else ()), *(upstream[2:3] if want_bias else ())]
    none = (None,) * 7
    if all(g is None for g in wanted):
        return (None,) * 8 + none
    shaped = [None if g is None else g.reshape(t.shape) for g, t in zip(wanted[1:], parameters, strict=False)]
    out = vjp(first, [dy, x, *parameters], [wanted[0], *shaped])
    rest = iter(out[2:])
    dw, db = (None if t is None else next(rest) for t in (weight, bias))
    return out[0], upstream[0] if ctx.has_sum else None, out[1], None, None, None, dw, db, *none


torch.library.register_autograd("normkit::fused", _backward, setup_context=_context, lib=library)
torch.library.register_autograd("normkit::fused_backward", _second, setup_context=_second_context, lib=library)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        out = tuple(fused(*inputs))
        _context(ctx, inputs, out)
        return out

    backward = staticmethod(_backward)


def gradients(
    dy: Tensor,
    dsum: Tensor | None,
    x: Tensor,
    mask: Tensor | None,
    mean: Tensor,
    std_or_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    fixed: bool,
    activation: int | str,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``normkit::fused_backward``; the door comes here, too, with what it cannot do itself."""
    name = activation if isinstance(activation, str) else list(ACTIVATIONS)[activation]
    call = (dy, dsum, x, mask, mean, std_or_var, weight, bias)
    inputs = (*call, pattern, eps, center, fixed, name, want_weight, want_bias)
    if torch.is_grad_enabled() or is_watched(dy) or is_watched(x):
        out: tuple[Tensor, Tensor, Tensor] = torch.ops.normkit.fused_backward.default(*inputs)
        return out
    return fused_backward(*inputs)


_apply: Callable[..., tuple[Tensor, ...]] = super(torch.autograd.Function, _Fused).apply


def run(
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    activation: str,
) -> Fused:
    """The way in. Transforms and forward mode take the definition, which they know how to differentiate."""
    inputs = (x, residual, mask, mean, var, weight, bias, pattern, eps, center, activation)
    if export.is_exported():
        out = reference(*inputs)
        if mask is None:  # operators of ONNX; what is then of no use, the exporter leaves out
            s = x if residual is None else out.sum
            if mean is None or var is None:
                y = export.normalized(s, weight, bias, pattern, eps, center)
            else:
                y = export.given(s, mean, var, weight, bias, pattern, eps)
            out = out._replace(y=ACTIVATIONS[activation](y))
        return out
    if not torch.compiler.is_compiling():
        if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
            return reference(*inputs)
        if not is_watched(x):
            return Fused(*(_apply(*inputs) if wants_gradient(x, residual, mean, var, weight, bias) else fused(*inputs)))
    return Fused(*torch.ops.normkit.fused.default(*inputs))
