"""``normkit::norm`` and ``normkit::norm_backward``: schema, shapes for tracing, gradients of any order, and the way in.

One pair serves every method, because the region is an argument, as text. Both take `Arguments`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from normkit.kernels import batched, context, export, formula
from normkit.kernels.backend import Want
from normkit.kernels.devices import kernels_for
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import ACTIVATIONS, Arguments, Result, vjp
from normkit.kernels.layout import Layout, dense_like, ready_plan
from normkit.pattern import parse

library = torch.library.Library("normkit", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_MORE = "Tensor? residual=None, Tensor? mask=None, str activation='none'"
library.define(
    "norm(Tensor x, Tensor? weight, Tensor? bias, str pattern, float eps, bool center, Tensor? mean=None,"
    f" Tensor? var=None, {_MORE}) -> (Tensor y, Tensor? sum, Tensor? mean, Tensor? std)",
    tags=_TAGS,
)
library.define(
    "norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, str pattern, float eps, bool center, Tensor mean,"
    " Tensor std_or_var, Tensor? dsum, Tensor? mask, str activation, bool fixed, bool want_x, bool want_weight,"
    " bool want_bias) -> (Tensor? dx, Tensor? dweight, Tensor? dbias)",
    tags=_TAGS,
)
# What it answers is of the moment and of no tensor: a CUDA graph that replays it would repeat its first answer.
library.define("is_first_pass(Device device) -> Tensor", tags=(*_TAGS, torch.Tag.cudagraph_unsafe))
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


# The operators ------------------------------------------------------------------------------------------------


def norm(a: Arguments, moments: bool = True) -> Result:
    """Body of ``normkit::norm``; without `moments` for when nobody will ask for them."""
    kernels = kernels_for(a.x)
    if kernels is None:
        y, total, mean, std = formula.norm(a)
        return Result(dense_like(a.x, y), None if total is None else dense_like(a.x, total), mean, std)
    given, eps = (None, a.eps) if a.var is None else (root(a.var, a.eps, a.x), 0.0)
    plan = ready_plan(a, given)
    if plan >= 0:
        return Result(*kernels.norm(a, plan, given, eps, None, moments))
    layout = Layout(a.x, a.pattern)
    given = None if given is None else layout.statistic(given)
    laid_out, mask = layout.arguments(a), layout.mask(a.mask)
    y, total, mean, std = kernels.norm(laid_out, layout.number, given, eps, mask, moments)
    mean, std = (None if t is None else layout.statistic_back(t) for t in (mean, std))
    return Result(layout.out(y), None if total is None else layout.out(total), mean, std)


def norm_backward(dy: Tensor, a: Arguments, fixed: bool, want: Want) -> Gradients:
    """Body of ``normkit::norm_backward``; with `fixed` the moments were given."""
    kernels = kernels_for(a.x)
    if kernels is None:
        grads = formula.norm_backward(dy, a, fixed)
        return _wanted((dense_like(a.x, grads.x), grads.weight, grads.bias), want)
    assert a.var is not None
    std, eps = (root(a.var, a.eps, a.x), 0.0) if fixed else (a.var, a.eps)
    plan = ready_plan(a, std, dy)
    if plan >= 0:
        return _wanted(kernels.norm_backward(dy, a, plan, std, eps, None, fixed, want), want)
    layout = Layout(a.x, a.pattern)
    options = (layout.number, layout.statistic(std), eps, layout.mask(a.mask), fixed, want)
    dx, dweight, dbias = _wanted(kernels.norm_backward(layout.into(dy), layout.arguments(a), *options), want)
    return (
        None if dx is None else layout.out(dx),
        None if dweight is None else layout.parameter_back(dweight),
        None if dbias is None else layout.parameter_back(dbias),
    )


def _wanted(grads: tuple[Tensor, Tensor, Tensor], want: Want) -> Gradients:
    dx, dweight, dbias = grads
    return dx if want.x else None, dweight if want.weight else None, dbias if want.bias else None


def root(var: Tensor, eps: float, x: Tensor) -> Tensor:
    """``sqrt(var + eps)`` in the arithmetic of x. eps first, for a stored variance may be slightly negative.

    Inside of the operators, so that eager, traced and compiled calls take the same root: torch's own may differ from
    the processor's in the last bit.
    """
    dtype = arithmetic_dtype(x.dtype)
    var = var.to(torch.promote_types(var.dtype, dtype))
    kernels = kernels_for(var)
    return ((var + eps).sqrt() if kernels is None else kernels.root(var.contiguous(), eps)).to(dtype)


def is_first_pass(device: torch.device) -> Tensor:
    """Whether a forward runs outside of backward, in which activation checkpointing runs it again; in no dimension."""
    return torch.full((), not context.is_in_backward(), device=device)


def _split(flat: Sequence[Any]) -> tuple[Arguments, bool, Want]:
    """The arguments of ``norm_backward`` after dy, which its schema has in a row."""
    return Arguments(*flat[:11]), flat[11], Want(*flat[12:])


def _norm_of_all(*args: Any) -> tuple[Tensor | None, ...]:
    return tuple(norm(Arguments(*args)))


def _norm_backward_of_all(dy: Tensor, *args: Any) -> Gradients:
    return norm_backward(dy, *_split(args))


library.impl("norm", _norm_of_all, "CompositeExplicitAutograd")
library.impl("norm_backward", _norm_backward_of_all, "CompositeExplicitAutograd")
library.impl("is_first_pass", is_first_pass, "CompositeExplicitAutograd")


@torch.library.register_fake("normkit::norm", lib=library)
def _(*args: Any) -> tuple[Tensor | None, ...]:
    a = Arguments(*args)
    total = None if a.residual is None else torch.empty_like(a.x)
    if a.var is not None:
        return torch.empty_like(a.x), total, None, None
    cells = math.prod(level.size for level in parse(a.pattern).levels(a.x.shape) if not level.reduced)
    dtype = arithmetic_dtype(a.x.dtype)
    moments = a.x.new_empty(cells if a.center else 0, dtype=dtype), a.x.new_empty(cells, dtype=dtype)
    return torch.empty_like(a.x), total, *moments


@torch.library.register_fake("normkit::norm_backward", lib=library)
def _(dy: Tensor, *args: Any) -> Gradients:
    a, _, want = _split(args)
    features = math.prod(level.size for level in parse(a.pattern).levels(a.x.shape) if level.feature)
    dweight, dbias = (a.x.new_empty(features, dtype=arithmetic_dtype(a.x.dtype)) if one else None for one in want[1:])
    return torch.empty_like(a.x) if want.x else None, dweight, dbias


@torch.library.register_fake("normkit::is_first_pass", lib=library)
def _(device: torch.device) -> Tensor:
    return torch.empty((), dtype=torch.bool, device=device)


# Gradients ----------------------------------------------------------------------------------------------------
#
# What is saved, and in which order, is the same in every way that a call can take, csrc/fastpath/ included. Activation
# checkpointing pairs the tensors that a forward has saved with those of its recomputation by their order, and the first
# call of a shape takes another way than those after it. `ctx.saved_tensors` is read once for the same reason: what has
# been recomputed is handed out only once.


def _context(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor | None]) -> None:
    x, weight, bias, pattern, eps, center, mean, var, residual, mask, activation = inputs
    channel_dims: list[int] = []
    fixed, places = var is not None, mask
    if mask is not None:  # saved without its dimensions of channels
        channel_dims = sorted({level.dim for level in parse(pattern).levels(x.shape) if level.feature})
        places = mask.squeeze(channel_dims)
    ctx.rest = (pattern, eps, center, activation, fixed, residual is not None, channel_dims)
    ctx.bias_like = None if bias is None else (bias.shape, bias.dtype)
    is_fused = residual is not None or mask is not None or activation != "none"
    source = x if residual is None else output[1]
    moments = (mean, var) if fixed else output[2:]
    ctx.save_for_backward(source, places, weight, bias if is_fused else None, *moments)
    ctx.set_materialize_grads(False)


def _shaped(flat: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A parameter's gradient in the parameter's shape and dtype."""
    shaped = flat if len(shape) == 1 else flat.view(shape)
    return shaped if shaped.dtype is dtype else shaped.to(dtype)


def _backward(
    ctx: Any,
    dy: Tensor | None,
    dsum: Tensor | None = None,
    dmean: Tensor | None = None,
    dstd: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    x, mask, weight, bias, mean, var = ctx.saved_tensors
    pattern, eps, center, activation, fixed, has_residual, channel_dims = ctx.rest
    for dim in channel_dims:
        mask = mask.unsqueeze(dim)
    a = Arguments(x, weight, bias, pattern, eps, center, mean, var, dsum if has_residual else None, mask, activation)
    # The dispatcher leaves trailing arguments out where they are the defaults.
    want_x, want_weight, want_bias, *_, want_mean, want_var, want_residual = (*ctx.needs_input_grad, *(False,) * 3)[:9]
    dx, dweight, dbias, dmean_given, dvar = a.residual, None, None, None, None
    if dy is not None:
        want = Want(want_x or want_residual, want_weight, want_bias)
        dx, dweight, dbias = gradients(dy, a, fixed, want)
    if fixed and dy is not None and (want_mean or want_var):
        plain = a._replace(residual=None)
        dmean_given, dvar = vjp(lambda m, v: formula.norm(plain._replace(mean=m, var=v))[:1], [mean, var], [dy])
    if not fixed and (dstd is not None or (dmean is not None and center)):
        own = a._replace(mean=None, var=None, residual=None)
        (extra,) = vjp(lambda x: formula.norm(own._replace(x=x))[2:], [x], [dmean if center else None, dstd])
        dx = extra if dx is None else dx + extra
    return (
        dx if want_x else None,
        None if dweight is None else _shaped(dweight, weight.shape, weight.dtype),
        None if dbias is None else _shaped(dbias, *ctx.bias_like),
        *(None,) * 3,
        dmean_given,
        dvar,
        dx if want_residual else None,
        *(None,) * 2,
    )


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a, ctx.fixed, ctx.want = _split(inputs[1:])
    ctx.rest, ctx.has_sum = a[3:6] + a[10:], a.residual is not None
    ctx.save_for_backward(inputs[0], a.x, a.mask, a.weight, a.bias, a.mean, a.var)
    ctx.set_materialize_grads(False)


def _backward_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives. The moments are functions of x, and their share is counted with x."""
    dy, x, mask, weight, bias, mean, var = ctx.saved_tensors
    pattern, eps, center, activation = ctx.rest

    def first(dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Sequence[Tensor]:
        a = Arguments(x, weight, bias, pattern, eps, center, mean, var, None, mask, activation)
        return formula.norm_backward(dy, a, ctx.fixed)

    wanted = [g if want else None for g, want in zip(upstream, ctx.want, strict=True)]
    grads: tuple[Tensor | None, ...] = (None,) * 4
    if any(g is not None for g in wanted):
        grads = vjp(first, [dy, x, weight, bias], wanted)
    return *grads, *(None,) * 5, wanted[0] if ctx.has_sum else None, *(None,) * 6


def differentiate(name: str, body: Callable[..., Any], setup_context: Callable[..., None], backward: Any) -> None:
    """Register the gradient of an operator.

    As `torch.library.register_autograd` does, whose kernel dispatches every call a second time; that costs 4 us. Where
    nothing watches, this one calls the operator's body.
    """
    op = getattr(torch.ops.normkit, name).default

    def below(args: tuple[Any, ...]) -> Any:
        if context.is_watched(args[0]):
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)
        return body(*args)

    def forward(ctx: Any, *args: Any) -> Any:
        out = below(args)
        missing = [argument.default_value for argument in op._schema.arguments[len(args) :]]
        setup_context(ctx, (*args, *missing), out)
        return out

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(f"Normkit_{name}", (torch.autograd.Function,), methods)

    def kernel(*args: Any) -> Any:
        if torch.is_grad_enabled() and context.wants_gradient(*[t for t in args if isinstance(t, Tensor)]):
            return function.apply(*args)
        return below(args)

    library.impl(name, kernel, "Autograd")


differentiate("norm", _norm_of_all, _context, _backward)
differentiate("norm_backward", _norm_backward_of_all, _backward_context, _backward_backward)
torch.library.register_vmap("normkit::norm", batched.norm, lib=library)


# The way in ---------------------------------------------------------------------------------------------------
#
# Through the dispatcher and a registered gradient a call costs nearly twice as much, all of it Python around the
# kernel. Where nothing watches (no tracing, no transform, no tensor subclass) the same bodies are called directly.
# Transforms of `torch.func` and forward mode take the formula, which they know how to differentiate and to batch.


class _Norm(torch.autograd.Function):
    """Gives y, and the sum with a residual; the moments go into a list, to be read but not differentiated."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        a, moments = Arguments(*inputs[:-1]), inputs[-1]
        out = norm(a)
        _context(ctx, a, out)
        moments += out[2:]
        return out.y if out.sum is None else out[:2]

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dsum: Tensor | None = None) -> tuple[Tensor | None, ...]:
        return *_backward(ctx, dy, dsum), None


# Function.apply asks on every call whether a transform is active; `is_watched` has answered that.
_apply: Callable[..., Any] = super(torch.autograd.Function, _Norm).apply
_norm, _norm_backward = torch.ops.normkit.norm.default, torch.ops.normkit.norm_backward.default


def run(a: Arguments, moments: bool = False) -> Result:
    """``normkit::norm``, by the way that suits what watches the call. Moments only where they are asked for."""
    if context.is_watched(a.x) or context.is_traced():
        if context.is_exported():
            return export.norm(a, moments)
        if context.is_differentiated() and (a.is_fused() or not context.is_only_mapped()):
            return formula.norm(a)
        return Result(*_norm(*a))
    if not context.wants_gradient(a.x, a.weight, a.bias, a.mean, a.var, a.residual):
        return norm(a, moments)
    kept: list[Tensor | None] = []
    out = _apply(*a, kept)
    y, total = (out, None) if a.residual is None else out
    return Result(y, total, *kept)


def gradients(dy: Tensor, a: Arguments, fixed: bool, want: Want) -> Gradients:
    """``normkit::norm_backward``, by the way that suits what watches the call."""
    if torch.is_grad_enabled() or context.is_watched(dy) or context.is_watched(a.x):
        if context.is_differentiated():
            return _wanted(formula.norm_backward(dy, a, fixed), want)
        out: Gradients = _norm_backward(dy, *a, fixed, *want)
        return out
    return norm_backward(dy, a, fixed, want)


def gradients_of_fast_path(dy: Tensor, *flat: Any) -> Gradients:
    """What csrc/fastpath/ asks for where it cannot do a backward pass itself; it has a number for the activation."""
    a, fixed, want = _split(flat)
    return gradients(dy, a._replace(activation=list(ACTIVATIONS)[flat[10]]), fixed, want)
