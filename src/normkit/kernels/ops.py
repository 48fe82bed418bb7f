"""The operators: schema, shapes for tracing, and the choice of the backend that carries a plan out.

Three operators serve every method, because the region is an argument, as text:
``normkit::normalize``, ``normkit::standardize`` (mean and variance given) and ``normkit::backward`` (of both).
Statistics are flat, in the order of the kept axes; so are weight and bias, in the order of the features.
Their gradients are in `normkit.kernels.autograd`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normkit.kernels import reference
from normkit.kernels.backend import kernels_for
from normkit.kernels.fit import Call, dense_like, direct_plan, is_ready
from normkit.kernels.reference import arithmetic_dtype
from normkit.pattern import parse

library = torch.library.Library("normkit", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
library.define(
    "normalize(Tensor x, Tensor? weight, Tensor? bias, str pattern, float eps, bool center)"
    " -> (Tensor y, Tensor mean, Tensor std)",
    tags=_TAGS,
)
library.define(
    "standardize(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, str pattern, float eps) -> Tensor",
    tags=_TAGS,
)
library.define(
    "backward(Tensor dy, Tensor x, Tensor mean, Tensor std_or_var, Tensor? weight, str pattern, float eps,"
    " bool center, bool fixed, bool want_x, bool want_weight, bool want_bias)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)",
    tags=_TAGS,
)
# What it answers is of the moment and of no tensor: a CUDA graph that replays it would repeat its first answer.
library.define("is_first_pass(Device device) -> Tensor", tags=(*_TAGS, torch.Tag.cudagraph_unsafe))


# The operators --------------------------------------------------------------------------------------------


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, pattern: str, eps: float, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = kernels_for(x)
    if kernels is None:
        y, mean, std = reference.normalize(x, weight, bias, parse(pattern), eps, center)
        return dense_like(x, y), mean, std
    plan = direct_plan(pattern, x.shape, x.stride(), x.device.type)
    if plan >= 0 and is_ready(weight, x) and is_ready(bias, x):
        return kernels.normalize(x, weight, bias, plan, eps, center)
    call = Call(x, pattern)
    y, mean, std = kernels.normalize(call.x, call.parameter(weight), call.parameter(bias), call.known_as, eps, center)
    return call.out(y), call.statistic_back(mean), call.statistic_back(std)


def infer(x: Tensor, weight: Tensor | None, bias: Tensor | None, pattern: str, eps: float, center: bool) -> Tensor:
    """The y of `normalize`, for when nobody will ask for the moments; no operator of its own."""
    kernels = kernels_for(x)
    if kernels is not None and is_ready(weight, x) and is_ready(bias, x):
        plan = direct_plan(pattern, x.shape, x.stride(), x.device.type)
        if plan >= 0:
            return kernels.infer(x, weight, bias, plan, eps, center)
    return normalize(x, weight, bias, pattern, eps, center)[0]


def root(var: Tensor, eps: float, x: Tensor) -> Tensor:
    """``sqrt(var + eps)`` in the arithmetic of x. eps first, for a stored variance may be slightly negative.

    Inside of the operators, so that eager, traced and compiled calls take the same root: torch's own may differ from
    the processor's in the last bit.
    """
    dtype = arithmetic_dtype(x.dtype)
    var = var.to(torch.promote_types(var.dtype, dtype))
    kernels = kernels_for(var)
    if kernels is None or kernels.root is None:
        return (var + eps).sqrt().to(dtype)
    return kernels.root(var.contiguous(), eps).to(dtype)


def standardize(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
) -> Tensor:
    kernels = kernels_for(x)
    if kernels is None:
        return dense_like(x, reference.standardize(x, mean, var, weight, bias, parse(pattern), eps))
    std = root(var, eps, x)
    plan = direct_plan(pattern, x.shape, x.stride(), x.device.type)
    if plan >= 0 and is_ready(weight, x) and is_ready(bias, x) and is_ready(mean, x):
        return kernels.standardize(x, mean, std, weight, bias, plan, 0.0)
    call = Call(x, pattern)
    y = kernels.standardize(
        call.x,
        call.statistic(mean),
        call.statistic(std),
        call.parameter(weight),
        call.parameter(bias),
        call.known_as,
        0.0,
    )
    return call.out(y)


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    std_or_var: Tensor,
    weight: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    fixed: bool,
    want_x: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """With `fixed` the moments were given: the mean and the variance."""
    kernels = kernels_for(x)
    if kernels is None:
        given = (mean, std_or_var) if fixed else None
        grads = reference.backward(dy, x, weight, parse(pattern), eps, center, given)
        none = x.new_empty(0, dtype=arithmetic_dtype(x.dtype))
        return (
            dense_like(x, grads.x) if want_x else none,
            grads.weight if want_weight else none.clone(),
            grads.bias if want_bias else none.clone(),
        )
    std = root(std_or_var, eps, x) if fixed else std_or_var
    eps = 0.0 if fixed else eps
    plan = direct_plan(pattern, x.shape, x.stride(), x.device.type)
    if plan >= 0 and dy.stride() == x.stride() and is_ready(weight, x) and is_ready(mean, x) and is_ready(std, x):
        rest = (eps, center, fixed, want_x, want_weight, want_bias)
        return kernels.backward(dy, x, mean, std, weight, plan, *rest)
    call = Call(x, pattern)
    dx, dweight, dbias = kernels.backward(
        call.into(dy),
        call.x,
        call.statistic(mean),
        call.statistic(std),
        call.parameter(weight),
        call.known_as,
        eps,
        center,
        fixed,
        want_x,
        want_weight,
        want_bias,
    )
    return call.out(dx) if want_x else dx, call.parameter_back(dweight), call.parameter_back(dbias)


def is_first_pass(device: torch.device) -> Tensor:
    """Whether a forward runs outside of backward, in which activation checkpointing runs it again; in no dimension."""
    return torch.full((), torch._C._current_graph_task_id() == -1, device=device)


library.impl("is_first_pass", is_first_pass, "CompositeExplicitAutograd")
for _name, _body in {"normalize": normalize, "standardize": standardize, "backward": backward}.items():
    library.impl(_name, _body, "CompositeExplicitAutograd")


# Shapes for tracing ---------------------------------------------------------------------------------------


def _sizes(x: Tensor, pattern: str) -> tuple[int, int]:
    """Number of statistics and of weights."""
    levels = parse(pattern).levels(x.shape)
    cells = math.prod(level.size for level in levels if not level.reduced)
    return cells, math.prod(level.size for level in levels if level.feature)


@torch.library.register_fake("normkit::normalize", lib=library)
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


@torch.library.register_fake("normkit::standardize", lib=library)
def _(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pattern: str,
    eps: float,
) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("normkit::backward", lib=library)
def _(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    std_or_var: Tensor,
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


@torch.library.register_fake("normkit::is_first_pass", lib=library)
def _(device: torch.device) -> Tensor:
    return torch.empty((), dtype=torch.bool, device=device)
