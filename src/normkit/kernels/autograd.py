"""Gradients of the operators, of any order, and the way in for everything above."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from normkit.errors import StateError
from normkit.kernels import batched, door, export, ops, reference
from normkit.kernels.backend import kernels_for
from normkit.kernels.reference import working_dtype
from normkit.pattern import parse


def vjp(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], upstream: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Gradients through a reference function, differentiable again where the caller asks for that.

    By `torch.func`, which sees the inputs as independent: an upstream gradient may itself be computed from x,
    and `torch.autograd.grad` would count that share a second time.
    """

    def followed(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple([y for y, g in zip(function(*leaves), upstream, strict=True) if g is not None])

    pull: Callable[..., tuple[Tensor, ...]] = torch.func.vjp(followed, *inputs)[1]
    return pull(tuple([g for g in upstream if g is not None]))


def _shaped(flat: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A parameter's gradient in the parameter's shape and dtype."""
    shaped = flat if len(shape) == 1 else flat.view(shape)
    return shaped if shaped.dtype is dtype else shaped.to(dtype)


def input_shaped(flat: Tensor, parameter: Tensor) -> Tensor:
    return _shaped(flat, parameter.shape, parameter.dtype)


# What is saved, and in which order, is the same in every way that a call can take, csrc/door.cpp included. Activation
# checkpointing pairs the tensors that a forward has saved with those of its recomputation by their order, and the first
# call of a shape takes another way than those after it. `ctx.saved_tensors` is read once for the same reason: what has
# been recomputed is handed out only once.


def _normalize_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, ctx.pattern, ctx.eps, ctx.center = inputs
    _, mean, std = output
    ctx.save_for_backward(x, weight, mean, std)
    ctx.bias_like = None if bias is None else (bias.shape, bias.dtype)
    ctx.set_materialize_grads(False)


def _input_gradients(
    ctx: Any, dy: Tensor, saved: Sequence[Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight, mean, std = saved
    want_x, want_weight, want_bias, *_ = ctx.needs_input_grad
    dx, dweight, dbias = gradients(
        dy, x, mean, std, weight, ctx.pattern, ctx.eps, ctx.center, False, want_x, want_weight, want_bias
    )
    return (
        dx if want_x else None,
        _shaped(dweight, weight.shape, weight.dtype) if want_weight else None,
        _shaped(dbias, *ctx.bias_like) if want_bias else None,
    )


def _normalize_backward(
    ctx: Any, dy: Tensor | None, dmean: Tensor | None, dstd: Tensor | None
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    dx, dweight, dbias = (None, None, None) if dy is None else _input_gradients(ctx, dy, saved)
    if (dmean is not None and ctx.center) or dstd is not None:

        def moments(leaf: Tensor) -> Sequence[Tensor]:
            return reference.normalize(leaf, None, None, parse(ctx.pattern), ctx.eps, ctx.center)[1:]

        (extra,) = vjp(moments, [saved[0]], [dmean if ctx.center else None, dstd])
        dx = extra if dx is None else dx + extra
    return dx, dweight, dbias, None, None, None


def _standardize_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mean, var, weight, bias, ctx.pattern, ctx.eps = inputs
    ctx.save_for_backward(x, weight, mean, var)
    ctx.bias_like = None if bias is None else (bias.shape, bias.dtype)


def _standardize_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mean, var = ctx.saved_tensors
    want_x, want_mean, want_var, want_weight, want_bias = ctx.needs_input_grad[:5]
    dx, dweight, dbias = gradients(
        dy, x, mean, var, weight, ctx.pattern, ctx.eps, True, True, want_x, want_weight, want_bias
    )
    dmean = dvar = None
    if want_mean or want_var:

        def applied(m: Tensor, v: Tensor) -> Sequence[Tensor]:
            return [reference.standardize(x, m, v, weight, None, parse(ctx.pattern), ctx.eps)]

        dmean, dvar = vjp(applied, [mean, var], [dy])
    return (
        dx if want_x else None,
        dmean,
        dvar,
        _shaped(dweight, weight.shape, weight.dtype) if want_weight else None,
        _shaped(dbias, *ctx.bias_like) if want_bias else None,
        None,
        None,
    )


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, x, mean, std_or_var, weight, ctx.pattern, ctx.eps, ctx.center, ctx.fixed, *ctx.want = inputs
    ctx.save_for_backward(dy, x, weight, mean, std_or_var)
    ctx.set_materialize_grads(False)


def _backward_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives. The moments are functions of x, and their share is counted with x."""
    dy, x, weight, mean, std_or_var = ctx.saved_tensors
    given = (mean, std_or_var) if ctx.fixed else None
    leaves = [dy, x] if weight is None else [dy, x, weight]
    wanted = [g if want else None for g, want in zip(upstream, ctx.want, strict=True)]

    def first(dy: Tensor, x: Tensor, weight: Tensor | None = None) -> Sequence[Tensor]:
        return reference.backward(dy, x, weight, parse(ctx.pattern), ctx.eps, ctx.center, given)

    out: tuple[Tensor | None, ...] = (None,) * len(leaves)
    if any(g is not None for g in wanted):
        out = vjp(first, leaves, wanted)
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
# Through the dispatcher and a registered gradient a call costs nearly twice as much, all of it Python around the
# kernel. Where nothing watches (no tracing, no transform, no tensor subclass) the same bodies are called directly.


class _Normalize(torch.autograd.Function):
    """Gives y alone; the moments go into a list, for whoever wants to read them but not to differentiate."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *call, moments = inputs
        y, mean, std = ops.normalize(*call)
        _normalize_context(ctx, tuple(call), (y, mean, std))
        if moments is not None:
            moments += (mean, std)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *_input_gradients(ctx, dy, ctx.saved_tensors), None, None, None, None


class _Standardize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = ops.standardize(*inputs)
        _standardize_context(ctx, inputs, y)
        return y

    backward = staticmethod(_standardize_backward)


# Function.apply asks on every call whether a transform is active; `is_watched` has answered that.
_apply_normalize: Callable[..., Tensor] = super(torch.autograd.Function, _Normalize).apply
_apply_standardize: Callable[..., Tensor] = super(torch.autograd.Function, _Standardize).apply


def _normalize_formula(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, pattern: str, eps: float, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.normalize(x, weight, bias, parse(pattern), eps, center)


def _standardize_formula(x: Tensor, mean: Tensor, var: Tensor, *rest: Any) -> Tensor:
    weight, bias, pattern, eps = rest
    return reference.standardize(x, mean, var, weight, bias, parse(pattern), eps)


def _backward_formula(
    dy: Tensor, x: Tensor, mean: Tensor, std_or_var: Tensor, weight: Tensor | None, pattern: str, eps: float, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    center, fixed, *_ = rest
    return reference.backward(dy, x, weight, parse(pattern), eps, center, (mean, std_or_var) if fixed else None)


# What forward mode and the transforms of `torch.func` see of an operator: its formula in plain torch, which they know
# how to differentiate in both modes and to batch. `torch.func` cannot see a gradient registered with an operator.
_FORMULAS: dict[Any, Callable[..., Any]] = {}


def register_formula(operator: Any, formula: Callable[..., Any]) -> None:
    """Make an operator work under `torch.func` and forward mode: `formula` takes its arguments, in plain torch."""
    _FORMULAS[operator] = formula


register_formula(torch.ops.normkit.normalize.default, _normalize_formula)
register_formula(torch.ops.normkit.standardize.default, _standardize_formula)
register_formula(torch.ops.normkit.backward.default, _backward_formula)
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
_dispatch_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.peek_interpreter_stack


def is_watched(x: Tensor) -> bool:
    """Whether something other than plain eager execution may want to see the operator itself."""
    return (
        type(x) not in _PLAIN_TYPES
        or torch.compiler.is_compiling()
        or _dispatch_modes() > 0
        or _transforms() is not None
        or forward_ad._current_level >= 0
    )


def _as_seen(operator: Any) -> Any:
    """The operator for whatever watches."""
    if torch.compiler.is_compiling() or (_transforms() is None and forward_ad._current_level < 0):
        return operator
    return operator if operator in _MAPPED and is_only_mapped() else _FORMULAS[operator]


_MAPPED = batched.OPERATORS
"""Operators that `torch.func.vmap` can take as they are."""


def is_only_mapped() -> bool:
    """Whether every transform round the call is a `vmap`; what differentiates is outside of them, torch's autograd."""
    if forward_ad._current_level >= 0:
        return False
    return all(level.key() == torch._C._functorch.TransformType.Vmap for level in _stack() or ())


_stack = torch._C._functorch.get_interpreter_stack


def wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def gradients(dy: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``normkit::backward``; the door comes here, too, with what it cannot do itself."""
    if torch.is_grad_enabled() or is_watched(dy) or is_watched(x):
        out: tuple[Tensor, Tensor, Tensor] = _as_seen(torch.ops.normkit.backward.default)(dy, x, *rest)
        return out
    return ops.backward(dy, x, *rest)


class Running(NamedTuple):
    """Running statistics that a call moves, and how: towards moments of so many values each, a number for each where
    they differ, as padding makes them."""

    mean: Tensor
    var: Tensor
    values: int | Tensor
    momentum: float


def normalized(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    running: Running | None = None,
) -> Tensor:
    """y of ``normkit::normalize``; its moments move the running statistics."""
    if running is None and not torch.compiler.is_compiling():
        through = door.normalize(x, weight, bias, pattern, eps, center, True, None, None, None)
        if through is not None:
            return through
    exported = export.is_exported()
    if exported and running is None:
        return export.normalized(x, weight, bias, pattern, eps, center)
    if exported:
        y, mean, std = reference.normalize(x, weight, bias, parse(pattern), eps, center)
    elif is_watched(x):
        out: tuple[Tensor, Tensor, Tensor] = _as_seen(torch.ops.normkit.normalize.default)(
            x, weight, bias, pattern, eps, center
        )
        y, mean, std = out
    else:
        moments: list[Tensor] = []
        if wants_gradient(x, weight, bias):
            y = _apply_normalize(x, weight, bias, pattern, eps, center, moments)
        elif running is None:
            return ops.infer(x, weight, bias, pattern, eps, center)
        else:
            y, *moments = ops.normalize(x, weight, bias, pattern, eps, center)
        mean, std = moments
    if running is not None:
        # Tangents of forward mode would stay in the statistics.
        move(running, mean.detach(), std.detach())
    return y


def normalized_with_moments(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, pattern: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and standard deviation, all three differentiable, under transforms as well."""
    if export.is_exported() or (not torch.compiler.is_compiling() and _transforms() is not None):
        # vmap would call the kernel once for each sample; plain torch it takes as a whole.
        return reference.normalize(x, weight, bias, parse(pattern), eps, True)
    out: tuple[Tensor, Tensor, Tensor] = torch.ops.normkit.normalize.default(x, weight, bias, pattern, eps, True)
    return out


def given(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
) -> Tensor:
    """y of ``normkit::standardize``, for a mean and a variance that are given."""
    if export.is_exported():
        return export.given(x, mean, var, weight, bias, pattern, eps)
    run = ops.standardize
    if is_watched(x):
        run = _as_seen(torch.ops.normkit.standardize.default)
    elif wants_gradient(x, mean, var, weight, bias):
        run = _apply_standardize
    return run(x, mean, var, weight, bias, pattern, eps)


_skipped = 0


def skipped_channels() -> int:
    """How many channels have kept their running statistics so far, because the new ones would not have been finite.

    Calls of the process in all; on a CPU, in eager execution.
    """
    return _skipped + door.skipped()


def move(running: Running, mean: Tensor, std: Tensor) -> None:
    plain = not isinstance(running.values, Tensor) and not export.is_exported()
    plain = plain and not is_watched(running.mean) and not is_watched(mean)
    global _skipped
    kernels = kernels_for(mean) if plain else None
    if kernels is not None and _is_moved(running.mean) and _is_moved(running.var):
        _skipped += kernels.move_running(running.mean, running.var, mean, std, running.values, running.momentum)
        # An operator with a schema of its own leaves the counting of in-place changes to its caller.
        torch.autograd.graph.increment_version([running.mean, running.var])
        return
    with torch.no_grad():
        *new, finite = moved(running.mean, running.var, *_unbiased(running, mean, std), running.momentum)
        if mean.is_cpu and not export.is_exported() and not is_watched(mean):
            _skipped += finite.numel() - int(finite.sum())
        for old, value in zip((running.mean, running.var), new, strict=True):
            keep(old, value)


def moved(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The running statistics after a batch, and which channels they have moved in.

    Computed as csrc/running.h does, rounded once to the dtype that they are stored in. Where that would not be finite a
    channel keeps what it has.
    """
    pairs = ((running_mean, mean), (running_var, var))
    new = [(old.to(now.dtype) + momentum * (now - old.to(now.dtype))).to(old.dtype) for old, now in pairs]
    finite = new[0].isfinite() & new[1].isfinite()
    mean, var = (torch.where(finite, now, old) for now, (old, _) in zip(new, pairs, strict=True))
    return mean, var, finite


def keep(statistic: Tensor, value: Tensor) -> None:
    """Write a running statistic; what a transform of torch.func refuses is said with its remedy."""
    if torch.compiler.is_compiling():
        # Asked each time that the graph runs: a checkpoint round a compiled module runs it again in backward.
        value = torch.where(torch.ops.normkit.is_first_pass.default(statistic.device), value, statistic)
    try:
        statistic.copy_(value)
    except RuntimeError as cause:
        if _transforms() is None:
            raise
        if "vmap" in str(cause):
            raise StateError(
                "running statistics of one batch cannot be moved by many under torch.func.vmap, got statistics that "
                "are not batched: use eval(), track_running_stats=False, or batch the buffers, too"
            ) from cause
        raise StateError(
            "running statistics move under torch.func where the transformed function is given them, got those of the "
            "layer itself: use eval(), track_running_stats=False, or hand the buffers in by torch.func.functional_call"
        ) from cause


def _unbiased(running: Running, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's mean and unbiased variance, averaged over the samples where each of those has its own."""
    wide, channels = working_dtype(mean), running.mean.numel()
    samples = mean.numel() // channels if channels else 1
    mean, var, values = mean.to(wide), std.to(wide).square(), running.values
    if not isinstance(values, Tensor):
        var = var * (values / (values - 1) / samples)
    else:
        # Where all is padding there is nothing to move towards: such a cell counts as what is already there.
        empty = values == 0
        var = var * (values / (values - 1).clamp(min=1)).to(wide)
        mean = torch.where(empty, running.mean.to(wide).repeat(samples), mean)
        var = torch.where(empty, running.var.to(wide).repeat(samples), var) / samples
    if samples == 1:
        return mean, var
    return mean.view(samples, channels).sum(0) / samples, var.view(samples, channels).sum(0)


def _is_moved(running: Tensor) -> bool:
    """Whether a kernel moves it; on a GPU, where numbers are passed in fp32, only if it is fp32 itself."""
    known = (torch.float32, torch.float64) if running.is_cpu else (torch.float32,)
    return running.dtype in known and running.is_contiguous() and not running.requires_grad
