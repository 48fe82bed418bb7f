"""Weight normalization as operators: ``normkit::weight_norm`` and its gradient.

``w = g * v / ||v||``, the length taken over every dimension but `dim`. To the kernels that is one more walk over cells:
their square sum is a moment, ``g / ||v||`` what they are scaled with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normkit.kernels import context, fastpath
from normkit.kernels.batched import stacked
from normkit.kernels.devices import kernels_for
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import vjp
from normkit.kernels.layout import dense_like, direct_plan, is_ready
from normkit.kernels.operator import decompose, implement, library
from normkit.kernels.sharded import know_distributed
from normkit.kernels.traced import decomposed
from normkit.pattern import all_but

_TAGS = (torch.Tag.pt2_compliant_tag,)
library.define("weight_norm(Tensor v, Tensor g, int? dim) -> (Tensor w, Tensor length)", tags=_TAGS)
library.define(
    "weight_norm_backward(Tensor dw, Tensor v, Tensor g, Tensor length, int? dim) -> (Tensor dv, Tensor dg)", tags=_TAGS
)


def length_of(v: Tensor, dim: int | None) -> Tensor:
    """The length that `weight_norm` divides by, to the last bit; 0 where `v` is 0. It keeps `dim`, with size 1."""
    v = v.detach()
    length = _length(v, dim)
    # The operator and not its body, for it may be a fake tensor that asks.
    exact = torch.ops.normkit.weight_norm.default(v, length, dim)[1]
    return torch.where(length > 0, exact.view(length.shape), 0)


def _length(v: Tensor, dim: int | None) -> Tensor:
    """The Euclidean length of `v` over all dimensions but `dim`, which it keeps with size 1; in fp32 or better.

    Divided by its largest value first, so that no square overflows; that value may count as a constant in
    backward, for the result does not depend on it. If `v` is 0 the sum of squares counts as 1, so that the gradient
    there is finite.
    """
    wide = v.to(arithmetic_dtype(v.dtype)).unsqueeze(-1)
    axes = [axis for axis in range(wide.ndim) if axis != dim]
    largest = wide.detach().abs().amax(axes, keepdim=True)
    scaled = wide / torch.where(largest > 0, largest, 1)
    length = largest * torch.where(largest > 0, scaled.square().sum(axes, keepdim=True), 1).sqrt()
    return length.reshape(()) if dim is None else length.squeeze(-1)


def _reference(v: Tensor, g: Tensor, dim: int | None) -> Tensor:
    length = _length(v, dim)
    # g / length first: it is 1 until g is trained (but for g's rounding to half precision), so the
    # weight starts as it was, bit for bit.
    return (v.to(length.dtype) * (g.to(length.dtype) / torch.where(length > 0, length, 1))).to(v.dtype)


def _gradients(dw: Tensor, v: Tensor, g: Tensor, dim: int | None) -> tuple[Tensor, ...]:
    return vjp(lambda v, g: [_reference(v, g, dim)], [v, g], [dw])


def _plan(v: Tensor, dim: int | None) -> int:
    """The kernels' plan, or -1 where they do not serve."""
    if kernels_for(v) is None:
        return -1
    plan, strides = direct_plan(all_but(dim), v.shape, v.stride(), None, v.device.type)
    return plan if strides == v.stride() else -1


def _ready(g: Tensor, v: Tensor) -> Tensor:
    return g if is_ready(v, g) else g.to(arithmetic_dtype(v.dtype)).contiguous()


def weight_norm(v: Tensor, g: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    plan, kernels = _plan(v, dim), kernels_for(v)
    if plan < 0 or kernels is None:
        length = _length(v, dim).reshape(-1)
        return dense_like(v, _reference(v, g, dim)), torch.where(length > 0, length, 1)
    return kernels.weight_norm(v, _ready(g, v), plan)


def weight_norm_backward(dw: Tensor, v: Tensor, g: Tensor, length: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    plan, kernels = _plan(v, dim), kernels_for(v)
    if plan < 0 or kernels is None:
        dv, dg = _gradients(dw, v, g, dim)
        return dense_like(v, dv), dg
    if dw.stride() != v.stride():
        dw = torch.empty_like(v).copy_(dw)
    dv, dg = kernels.weight_norm_backward(dw, v, _ready(g, v), length, plan)
    if g.dim() != 1:
        dg = dg.view(g.shape)
    return dv, dg if dg.dtype is g.dtype else dg.to(g.dtype)


@torch.library.register_fake("normkit::weight_norm", lib=library)
def _(v: Tensor, g: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(v), v.new_empty(g.numel(), dtype=arithmetic_dtype(v.dtype))


@torch.library.register_fake("normkit::weight_norm_backward", lib=library)
def _(dw: Tensor, v: Tensor, g: Tensor, length: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(v), torch.empty_like(g)


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    v, g, ctx.dim = inputs
    ctx.save_for_backward(v, g, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dw: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dw is None:
        return None, None, None
    v, g, length = ctx.saved_tensors
    run = weight_norm_backward
    if torch.is_grad_enabled() or context.is_watched(dw) or context.is_watched(v):
        run = torch.ops.normkit.weight_norm_backward.default
    return *run(dw, v, g, length, ctx.dim), None


def gradients_of_fast_path(dw: Tensor, v: Tensor, g: Tensor, *flat: Any) -> tuple[Tensor, ...]:
    """``normkit::weight_norm_backward`` for csrc/fastpath/, with the arguments that it has for every method."""
    _, pattern, _, _, _, length, *_ = flat
    dim = None if pattern == all_but(None) else pattern.count("i")
    return torch.ops.normkit.weight_norm_backward.default(dw, v, g, length, dim)  # type: ignore[no-any-return]


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dw, v, g, _, ctx.dim = inputs
    ctx.save_for_backward(dw, v, g)
    ctx.set_materialize_grads(False)


def _backward_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives. The length is a function of v, and its share is counted with v."""
    if all(g is None for g in upstream):
        return (None,) * 5

    def gradients(dw: Tensor, v: Tensor, g: Tensor) -> Sequence[Tensor]:
        return _gradients(dw, v, g, ctx.dim)

    return *vjp(gradients, ctx.saved_tensors, upstream), None, None


_differentiable = implement("weight_norm", weight_norm, _context, _backward)
implement("weight_norm_backward", weight_norm_backward, _backward_context, _backward_backward)
decompose("weight_norm", decomposed.weight_norm)
decompose("weight_norm_backward", decomposed.weight_norm_backward)


def _mapped(
    info: Any, in_dims: tuple[int | None, ...], v: Tensor, g: Tensor, dim: int | None
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """`torch.func.vmap`: the weights of all copies side by side are one weight of more channels."""
    copies = info.batch_size
    v, g = (stacked(t, at, copies) for t, at in zip((v, g), in_dims[:2], strict=True))
    at = 0 if dim is None else dim
    if dim is None:
        # One length for each copy.
        flat, rows = v.flatten(1), g.reshape(copies, 1)
    else:
        flat = v.movedim(0, at).flatten(at, at + 1)
        rows = g.movedim(0, at).flatten(at, at + 1) if g.dim() == v.dim() else g.flatten()
    w, length = torch.ops.normkit.weight_norm.default(flat, rows, at)
    if dim is None:
        return (w.view(v.shape), length.view(copies, -1)), (0, 0)
    return (w.unflatten(at, (copies, v.shape[at + 1])), length.view(copies, -1)), (at, 0)


torch.library.register_vmap("normkit::weight_norm", _mapped, lib=library)


def _is_plain() -> bool:
    """Whether plain torch computes the formula: for transforms, forward mode, export and tracing."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return context.is_traced() or (context.is_differentiated() and not context.is_only_mapped())


def normalized_weight(v: Tensor, g: Tensor, dim: int | None) -> Tensor:
    """w of ``normkit::weight_norm``."""
    if not torch.compiler.is_compiling():
        through = fastpath.weight_norm(v, g, all_but(dim))
        if through is not None:
            return through
    if _is_plain():
        return _reference(v, g, dim)
    way: Any = _differentiable if context.wants_gradient(v, g) else weight_norm
    if context.is_watched(v) or context.is_watched(g):
        know_distributed()
        way = torch.ops.normkit.weight_norm.default
    w: Tensor = way(v, g, dim)[0]
    return w
