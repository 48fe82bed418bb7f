"""``normkit::norm`` and ``normkit::norm_backward``: schema, shapes for tracing, gradients of any order, entry points.

One pair serves every method, because the region is an argument, as text. Both take `Arguments`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode

from normkit.kernels import batched, context, devices, formula
from normkit.kernels.backend import Kernels, Want
from normkit.kernels.devices import kernels_for
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import GATES, Arguments, Gradients, Result, vjp
from normkit.kernels.layout import Layout, dense_like, ready_plan
from normkit.kernels.sharded import is_distributed, know_distributed
from normkit.kernels.traced import decomposed, export, inductor
from normkit.pattern import parse

library = torch.library.Library("normkit", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
library.define(
    "norm(Tensor x, Tensor? weight, Tensor? bias, str pattern, float eps, bool center, Tensor? mean=None,"
    " Tensor? var=None, Tensor? residual=None, Tensor? mask=None, str activation='none', Tensor? gate=None,"
    " Tensor? skip=None, str gate_activation='none', bool gate_first=False, bool zero_centered=False,"
    " bool cast_first=False)"
    " -> (Tensor y, Tensor? sum, Tensor? mean, Tensor? std)",
    tags=_TAGS,
)
library.define(
    "norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, str pattern, float eps, bool center, Tensor mean,"
    " Tensor std_or_var, Tensor? dsum, Tensor? mask, str activation, Tensor? gate, Tensor? skip, str gate_activation,"
    " bool gate_first, bool zero_centered, bool cast_first, bool fixed, bool want_x, bool want_weight, bool want_bias,"
    " bool want_gate, bool want_skip)"
    " -> (Tensor? dx, Tensor? dweight, Tensor? dbias, Tensor? dgate, Tensor? dskip)",
    tags=_TAGS,
)
# Its answer depends on the time of the call and on no tensor: a CUDA graph that replays it would repeat the first one.
library.define("is_first_pass(Device device) -> Tensor", tags=(*_TAGS, torch.Tag.cudagraph_unsafe))


# The operators ------------------------------------------------------------------------------------------------


def norm(a: Arguments, moments: bool = True) -> Result:
    """Body of ``normkit::norm``; with `moments` false the kernels need not return them."""
    kernels = kernels_for(a.x)
    if kernels is None:
        out = formula.norm(a)
        return out._replace(y=dense_like(a.x, out.y), sum=None if out.sum is None else dense_like(a.x, out.sum))
    given, eps = (None, a.eps) if a.var is None else _given(kernels, a.var, a)
    plan = ready_plan(a, given)
    if plan >= 0:
        return Result(*kernels.norm(a, plan, given, eps, None, moments))
    layout = Layout(a)
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
        dx, dgate, dskip = (None if t is None else dense_like(a.x, t) for t in (grads.x, grads.gate, grads.skip))
        return _wanted(grads._replace(x=dx, gate=dgate, skip=dskip), want)
    assert a.var is not None
    std, eps = _given(kernels, a.var, a) if fixed else (a.var, a.eps)
    plan = ready_plan(a, std, dy)
    if plan >= 0:
        return _wanted(kernels.norm_backward(dy, a, plan, std, eps, None, fixed, want), want)
    layout = Layout(a)
    options = (layout.number, layout.statistic(std), eps, layout.mask(a.mask), fixed, want)
    grads = _wanted(kernels.norm_backward(layout.into(dy), layout.arguments(a), *options), want)
    dx, dgate, dskip = (None if t is None else layout.out(t) for t in (grads.x, grads.gate, grads.skip))
    dweight, dbias = (None if t is None else layout.parameter_back(t) for t in (grads.weight, grads.bias))
    return Gradients(dx, dweight, dbias, dgate, dskip)


def _wanted(grads: Gradients, want: Want) -> Gradients:
    return Gradients(*[t if wanted else None for t, wanted in zip(grads, want, strict=True)])


def _given(kernels: Kernels, var: Tensor, a: Arguments) -> tuple[Tensor, float]:
    """A given variance as the kernels take it, and the eps that they still add."""
    dtype = arithmetic_dtype(a.x.dtype)
    taken, eps = kernels.given(var.to(torch.promote_types(var.dtype, dtype)).contiguous(), a.eps)
    return taken.to(dtype), eps


def is_first_pass(device: torch.device) -> Tensor:
    """Whether a forward runs outside of backward, in which activation checkpointing runs it again; a scalar."""
    return torch.full((), not context.is_in_backward(), device=device)


def _split(flat: Sequence[Any]) -> tuple[Arguments, bool, Want]:
    """The arguments of ``norm_backward`` after dy, which its schema has in a row."""
    return Arguments(*flat[:_ARGUMENTS]), flat[_ARGUMENTS], Want(*flat[_ARGUMENTS + 1 :])


_ARGUMENTS = len(Arguments._fields)


def _norm_of_all(*args: Any) -> tuple[Tensor | None, ...]:
    return tuple(norm(Arguments(*args)))


def _norm_backward_of_all(dy: Tensor, *args: Any) -> tuple[Tensor | None, ...]:
    return tuple(norm_backward(dy, *_split(args)))


@torch.library.register_fake("normkit::norm", lib=library)
def _(*args: Any) -> tuple[Tensor | None, ...]:
    a = Arguments(*args)
    inductor.connect(a.x)
    total = None if a.residual is None else torch.empty_like(a.x)
    if a.var is not None:
        return torch.empty_like(a.x), total, None, None
    cells = math.prod(level.size for level in parse(a.pattern).levels(a.x.shape) if not level.reduced)
    dtype = arithmetic_dtype(a.x.dtype)
    moments = a.x.new_empty(cells if a.center else 0, dtype=dtype), a.x.new_empty(cells, dtype=dtype)
    return torch.empty_like(a.x), total, *moments


@torch.library.register_fake("normkit::norm_backward", lib=library)
def _(dy: Tensor, *args: Any) -> tuple[Tensor | None, ...]:
    a, _, want = _split(args)
    if a.weight is None and a.bias is None:
        features = math.prod(level.size for level in parse(a.pattern).levels(a.x.shape) if level.feature)
    else:
        features = max(t.numel() for t in (a.weight, a.bias) if t is not None)
    flat, dtype = (features,), arithmetic_dtype(a.x.dtype)
    dweight, dbias = (a.x.new_empty(flat, dtype=dtype) if one else None for one in (want.weight, want.bias))
    dx, dgate, dskip = (torch.empty_like(a.x) if one else None for one in (want.x, want.gate, want.skip))
    return dx, dweight, dbias, dgate, dskip


library.impl("is_first_pass", is_first_pass, "CompositeExplicitAutograd")


@torch.library.register_fake("normkit::is_first_pass", lib=library)
def _(device: torch.device) -> Tensor:
    return torch.empty((), dtype=torch.bool, device=device)


# Gradients ----------------------------------------------------------------------------------------------------
#
# Every way that a call can take saves the same tensors in the same order, csrc/fastpath/ included. Activation
# checkpointing pairs the tensors that a forward has saved with those of its recomputation by their order, and the first
# call of a shape takes another way than those after it. `ctx.saved_tensors` is read once for the same reason: what has
# been recomputed is handed out only once.


def _context(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor | None]) -> None:
    a = Arguments(*inputs)
    channel_dims: list[int] = []
    fixed, places = a.var is not None, a.mask
    if a.mask is not None:  # saved without its dimensions of channels
        channel_dims = sorted({level.dim for level in parse(a.pattern).levels(a.x.shape) if level.feature})
        places = a.mask.squeeze(channel_dims)
    ctx.rest = (fixed, a.residual is not None, a.skip is not None, channel_dims)
    ctx.call = _without_tensors(a)
    ctx.bias_like = None if a.bias is None else (a.bias.shape, a.bias.dtype)
    source = a.x if a.residual is None else output[1]
    moments = (a.mean, a.var) if fixed else output[2:]
    needed = (a.gate, a.skip if a.activation != "none" else None) if a.gate is not None or a.skip is not None else ()
    # A bias alone says over which dimensions its gradient is summed.
    keeps_bias = a.is_fused() or (a.weight is None and a.varying() is not None)
    ctx.save_for_backward(source, places, a.weight, a.bias if keeps_bias else None, *moments, *needed)
    ctx.set_materialize_grads(False)


def _without_tensors(a: Arguments) -> Arguments:
    """A call as a context may keep it; the tensors are saved."""
    return Arguments(*[None if isinstance(value, Tensor) else value for value in a])  # type: ignore[arg-type]


def _backward(
    ctx: Any,
    dy: Tensor | None,
    dsum: Tensor | None = None,
    dmean: Tensor | None = None,
    dstd: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    x, mask, weight, bias, mean, var, *needed = ctx.saved_tensors
    gate, skip = needed or (None, None)
    fixed, has_residual, has_skip, channel_dims = ctx.rest
    for dim in channel_dims:
        mask = mask.unsqueeze(dim)
    call: Arguments = ctx.call
    a = call._replace(x=x, weight=weight, bias=bias, mean=mean, var=var, mask=mask, gate=gate, skip=skip)
    a = a._replace(residual=dsum if has_residual else None)
    # The dispatcher leaves trailing arguments out where they are the defaults.
    wants = Arguments(*(*ctx.needs_input_grad, *(False,) * len(call))[: len(call)])
    skip_is_dy = has_skip and a.activation == "none" and mask is None
    grads, dmean_given, dvar = Gradients(a.residual, None, None), None, None
    if dy is not None:
        want_skip = bool(wants.skip) and not skip_is_dy
        want = Want(bool(wants.x or wants.residual), bool(wants.weight), bool(wants.bias), bool(wants.gate), want_skip)
        grads = gradients(dy, a, fixed, want)
    if fixed and dy is not None and (wants.mean or wants.var):
        plain = a._replace(residual=None)
        dmean_given, dvar = vjp(lambda m, v: formula.norm(plain._replace(mean=m, var=v))[:1], [mean, var], [dy])
    dx = grads.x
    if not fixed and (dstd is not None or (dmean is not None and a.center)):
        dmean = dmean if a.center else None
        if a.gate_first:
            own = a._replace(mean=None, var=None, residual=None, skip=None)
            extra, more = vjp(lambda x, g: formula.norm(own._replace(x=x, gate=g))[2:], [x, gate], [dmean, dstd])
            grads = grads._replace(gate=more if grads.gate is None else grads.gate + more)
        else:
            extra = formula.moments_backward(a, dmean, dstd)
        dx = extra if dx is None else dx + extra
    by_name = {
        "x": dx if wants.x else None,
        "weight": None if grads.weight is None else grads.weight.view(weight.shape).to(weight.dtype),
        "bias": None if grads.bias is None else grads.bias.view(ctx.bias_like[0]).to(ctx.bias_like[1]),
        "mean": dmean_given,
        "var": dvar,
        "residual": dx if wants.residual else None,
        "gate": grads.gate if wants.gate else None,
        "skip": (dy if skip_is_dy else grads.skip) if wants.skip else None,
    }
    return tuple([by_name.get(name) for name in Arguments._fields])


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a, ctx.fixed, ctx.want = _split(inputs[1:])
    ctx.call, ctx.has_sum = _without_tensors(a), a.residual is not None
    ctx.save_for_backward(inputs[0], a.x, a.mask, a.weight, a.bias, a.mean, a.var, a.gate, a.skip)
    ctx.set_materialize_grads(False)


def _backward_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives. The moments are functions of x, and their share is counted with x."""
    dy, x, mask, weight, bias, mean, var, gate, skip = ctx.saved_tensors
    call: Arguments = ctx.call

    def first(dy: Tensor, x: Tensor, *rest: Tensor | None) -> Sequence[Tensor | None]:
        weight, bias, gate, skip = rest
        a = call._replace(x=x, weight=weight, bias=bias, gate=gate, skip=skip, mean=mean, var=var, mask=mask)
        return formula.norm_backward(dy, a, ctx.fixed)

    wanted = [g if want else None for g, want in zip(upstream, ctx.want, strict=True)]
    grads: tuple[Tensor | None, ...] = (None,) * 6
    if any(g is not None for g in wanted):
        grads = vjp(first, [dy, x, weight, bias, gate, skip], wanted)
    by_name = dict(zip(("x", "weight", "bias", "gate", "skip"), grads[1:], strict=True))
    by_name["residual"] = wanted[0] if ctx.has_sum else None
    return grads[0], *[by_name.get(name) for name in Arguments._fields], *(None,) * (1 + len(Want._fields))


BODIES: dict[Any, Callable[..., Any]] = {}
"""The body of each operator that has a gradient, for callers that know that nothing watches the call."""


def implement(
    name: str, body: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """Give an operator its body and its gradient, and return it as a differentiable function.

    The gradient is registered as by `torch.library.register_autograd`, whose kernel dispatches every call a second
    time; that costs 4 us. If nothing watches the call, this one calls the body.
    """
    library.impl(name, body, "CompositeExplicitAutograd")
    op = getattr(torch.ops.normkit, name).default
    BODIES[op] = body

    def below(args: tuple[Any, ...]) -> Any:
        if context.is_watched(args[0]) or not context.is_plain(args[1]):
            know_distributed()
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)
        return body(*args)

    def forward(ctx: Any, *args: Any) -> Any:
        out = below(args)
        missing = [argument.default_value for argument in op._schema.arguments[len(args) :]]
        setup_context(ctx, (*args, *missing), out)
        return out

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(f"Python_{name}", (torch.autograd.Function,), methods)

    def kernel(*args: Any) -> Any:
        if torch.is_grad_enabled() and context.wants_gradient(*[t for t in args if isinstance(t, Tensor)]):
            return function.apply(*args)
        return below(args)

    library.impl(name, kernel, "Autograd")
    # Function.apply asks on every call whether a transform is active; the callers of this have asked `is_watched`.
    plain: Callable[..., Any] = super(torch.autograd.Function, function).apply
    return plain


_differentiable_norm = implement("norm", _norm_of_all, _context, _backward)
implement("norm_backward", _norm_backward_of_all, _backward_context, _backward_backward)
torch.library.register_vmap("normkit::norm", batched.norm, lib=library)


def decompose(name: str, plain: Callable[..., Any]) -> None:
    """Let ``torch.compile`` take an operator apart on a GPU, where Inductor fuses plain operations with others.

    AOTAutograd traces a graph in functional mode, below the gradient that `implement` has registered; so forward and
    backward operator are taken apart each for itself, and the graph saves the same tensors. An exported program keeps
    the operators.
    """

    def rule(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not devices.is_on_gpu(args[0]) or torch.compiler.is_exporting() or is_distributed(args[0]):
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode:
            return plain(*args, **kwargs)

    torch.library.register_torch_dispatch(f"normkit::{name}", FunctionalTensorMode, rule, lib=library)


def _decomposed_backward(dy: Tensor, *args: Any) -> tuple[Tensor | None, ...]:
    a, fixed, want = _split(args)
    return tuple(_wanted(decomposed.norm_backward(dy, a, fixed), want))


decompose("norm", lambda *args: tuple(decomposed.norm(Arguments(*args))))
decompose("norm_backward", _decomposed_backward)


# Entry points -------------------------------------------------------------------------------------------------
#
# Through the dispatcher and a registered gradient a call costs nearly twice as much, all of it Python around the
# kernel. Where nothing watches (no tracing, no transform, no tensor subclass) the same bodies are called directly.
# Transforms of `torch.func` and forward mode take the formula, which they know how to differentiate and to batch.


_norm, _norm_backward = torch.ops.normkit.norm.default, torch.ops.normkit.norm_backward.default


def run(a: Arguments, moments: bool = False) -> Result:
    """``normkit::norm``, by the way that suits what watches the call. Moments only where they are asked for."""
    if context.is_watched(a.x) or context.is_traced() or not context.is_plain(a.weight):
        know_distributed()
        if context.is_exported():
            return export.norm(a, moments)
        if context.is_differentiated() and not (context.is_only_mapped() and a.is_batched_by_rule()):
            return formula.norm(a)
        return Result(*_norm(*a))
    if context.wants_gradient(a.x, a.weight, a.bias, a.mean, a.var, a.residual, a.gate, a.skip):
        return Result(*_differentiable_norm(*a))
    return norm(a, moments)


def gradients(dy: Tensor, a: Arguments, fixed: bool, want: Want) -> Gradients:
    """``normkit::norm_backward``, by the way that suits what watches the call."""
    if torch.is_grad_enabled() or context.is_watched(dy) or context.is_watched(a.x):
        if context.is_differentiated():
            return _wanted(formula.norm_backward(dy, a, fixed), want)
        return Gradients(*_norm_backward(dy, *a, fixed, *want))
    return norm_backward(dy, a, fixed, want)


def gradients_of_fast_path(dy: Tensor, *flat: Any) -> tuple[Tensor | None, ...]:
    """A backward pass that csrc/fastpath/ cannot carry out itself; it passes activations by their numbers."""
    *arguments, fixed, want_x, want_weight, want_bias, want_gate, want_skip = flat
    names, a = list(GATES), Arguments(*arguments)
    a = a._replace(activation=names[a.activation], gate_activation=names[a.gate_activation])  # type: ignore[call-overload]
    return gradients(dy, a, fixed, Want(want_x, want_weight, want_bias, want_gate, want_skip))
