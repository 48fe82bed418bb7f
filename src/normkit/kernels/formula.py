"""The definition of every method in plain torch: the oracle of the tests, the fallback, and the second derivatives.

Computed in float64 on a CPU and in at least float32 elsewhere and in ONNX. Differentiable throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from normkit.kernels.context import transforms_in_use
from normkit.kernels.dtypes import arithmetic_dtype, working_dtype
from normkit.kernels.regions import region_of
from normkit.pattern import Level

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
GATES: dict[str, Callable[[Tensor], Tensor]] = {**ACTIVATIONS, "plus_one": lambda z: 1 + z}
"""The functions of a gate."""
NUMBERS = {name: number for number, name in enumerate(GATES)}


class Arguments(NamedTuple):
    """The arguments of ``normkit::norm``, in the order of its schema.

    Statistics are flat, in the order of the kept axes. Weight and bias have one value for each feature, or both have
    the number of dimensions of x and broadcast to it: `varying`. `mask` is boolean, True for valid, and has size 1 in
    the channel dimensions. `residual`, `gate` and `skip` have the shape of x. With `cast_first`, x_hat and the weight
    are rounded to the dtype of x before they are multiplied. ``normkit::norm_backward`` takes the same, with x the sum
    that was normalized, `residual` the gradient of that sum, and the moments: `mean`, and in `var` the variance if they
    were given, else the standard deviation.
    """

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    pattern: str
    eps: float
    center: bool
    mean: Tensor | None = None
    var: Tensor | None = None
    residual: Tensor | None = None
    mask: Tensor | None = None
    activation: str = "none"
    gate: Tensor | None = None
    skip: Tensor | None = None
    gate_activation: str = "none"
    gate_first: bool = False
    zero_centered: bool = False
    cast_first: bool = False

    def is_fused(self) -> bool:
        """Whether the call does more than normalize."""
        return (
            self.residual is not None
            or self.mask is not None
            or self.activation != "none"
            or self.gate is not None
            or self.skip is not None
        )

    def is_batched_by_rule(self) -> bool:
        """Whether `normkit.kernels.batched` maps such a call."""
        return not self.is_fused() and self.varying() is None

    def varying(self) -> tuple[bool, ...] | None:
        """The dimensions of x over which weight and bias vary; None if those are the features."""
        parameter = self.bias if self.weight is None else self.weight
        dims = self.x.dim()
        if parameter is None or parameter.dim() != dims or dims == 1:
            return None
        levels = region_of(self.pattern).levels(self.x.shape)
        features = {level.dim for level in levels if level.feature and self.x.shape[level.dim] != 1}
        own = {dim for dim, size in enumerate(parameter.shape) if size != 1}
        return None if own == features else tuple([dim in own for dim in range(dims)])

    def is_rounded(self) -> bool:
        """Whether rounding x_hat before the product makes a difference."""
        return self.cast_first and self.x.dtype is not arithmetic_dtype(self.x.dtype)


class Result(NamedTuple):
    """`sum` is None without a residual; the moments are None if they are given, or not asked for."""

    y: Tensor
    sum: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, of a call that has been asked for them; without a gradient."""
        assert self.mean is not None
        assert self.std is not None
        # Those of a distributed tensor have its kept dimensions.
        mean, std = (t.detach() if t.dim() == 1 else t.detach().reshape(-1) for t in (self.mean, self.std))
        return mean, std


class Gradients(NamedTuple):
    """The gradients of a call, None where they are not asked for; those of weight and bias are flat."""

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    gate: Tensor | None = None
    skip: Tensor | None = None


def norm(a: Arguments) -> Result:
    """``y = activation(z * f(gate) + skip)``, 0 at padding, with ``z = (s - mean) / sqrt(var + eps) * weight + bias``.

    ``s = x + residual``. With `gate_first`, ``s = x * f(gate)``, and z is not multiplied. Mean and variance are given,
    or those of the valid elements of s. The standard deviation ``sqrt(var)`` is returned, not the variance, because its
    range in fp32 is that of the data. Where all is padding it counts as 1.
    """
    s = a.x if a.residual is None else a.x + a.residual
    view = _View(a, s)
    mean, var = view.given() if a.var is not None else view.moments()
    z = view.rounded(view.affine(view.rounded(view.standardized(mean, var))))
    y = ACTIVATIONS[a.activation](view.gated(z))
    own_mean = own_std = None
    if a.var is None:
        own_mean = view.flat(mean) if a.center else a.x.new_empty(0, dtype=view.stat)
        own_std = view.flat(root(var))
    return Result(view.like_x(y), None if a.residual is None else s, own_mean, own_std)


def norm_backward(dy: Tensor, a: Arguments, fixed: bool) -> Gradients:
    """All gradients, those of weight and bias flat and in logical order.

    The moments are those in `a` if they were given (`fixed`), else computed from x.

    ``ds = rstd * (g - mean(g) - x_hat * mean(g * x_hat))`` with ``g = dy * activation'(q) * f(gate) * weight`` and
    q the argument of the activation; with given moments ``ds = rstd * g``. Rounding x_hat first changes no gradient.
    """
    view = _View(a._replace(cast_first=False), a.x)
    mean, var = view.given() if fixed else view.moments()
    x_hat = view.standardized(mean, var)
    upstream, dgate, z = view.split(dy), None, x_hat
    if a.activation != "none" or a.gate is not None:
        z = view.affine(x_hat)
    if a.activation != "none":
        (upstream,) = vjp(lambda q: [ACTIVATIONS[a.activation](q)], [view.gated(z)], [upstream])
    dskip = upstream
    if a.gate is not None and not a.gate_first:
        dgate = view.times_slope(upstream * z)
        upstream = upstream * view.factor()
    g = upstream if a.weight is None else upstream * view.weight()
    inside = g
    if not fixed:
        inside = g - x_hat * view.average(g * x_hat)
        if a.center:
            inside = inside - view.average(g)
    ds = inside / (var + a.eps).sqrt()
    if a.gate_first:
        dgate = view.times_slope(ds * view.split(a.x))
        ds = ds * view.factor()
    dx = view.like_x(ds)
    return Gradients(
        dx if a.residual is None else dx + a.residual,
        view.over_features(upstream * x_hat),
        view.over_features(upstream),
        None if dgate is None else view.like_x(dgate),
        view.like_x(dskip),
    )


def moments_backward(a: Arguments, dmean: Tensor | None, dstd: Tensor | None) -> Tensor:
    """The gradient of x from those of its own moments, which `a` has: the mean, and in `var` the standard deviation.

    ``dx = (dmean + dstd * (x - mean) / std) / count``, without the second term where the deviation is 0; 0 at padding.
    """
    assert a.var is not None
    levels = region_of(a.pattern).levels(a.x.shape)
    sizes, kept = ([level.size for level in levels], [1 if level.reduced else level.size for level in levels])
    std = a.var.view(kept)
    x = a.x if a.x.dtype is std.dtype else a.x.to(std.dtype)
    x = x.reshape(sizes)
    if a.mask is None:
        share: Tensor | float = std.numel() / max(a.x.numel(), 1)
    else:
        share = (1 / counts_of(a.mask, a.x.shape, levels).clamp(min=1)).to(std.dtype).reshape(kept)
    dx = (torch.zeros_like(std) if dmean is None else dmean.view(kept)) * share
    if dstd is not None:
        constant = std == 0
        slope = torch.where(constant, 0, dstd.view(kept) * share / torch.where(constant, 1, std))
        if a.center and a.mean is not None:
            dx = torch.addcmul(dx, x - a.mean.view(kept), slope)
        else:
            dx = x * slope if dmean is None else torch.addcmul(dx, x, slope)
    dx = dx.expand(sizes).reshape(a.x.shape)
    dx = dx if a.mask is None else torch.where(a.mask, dx, 0)
    return dx if dx.dtype is a.x.dtype else dx.to(a.x.dtype)


def root(var: Tensor) -> Tensor:
    """The square root, with a gradient of 0 at 0."""
    zero = var == 0
    return torch.where(zero, 0, torch.where(zero, 1, var).sqrt())


class _View:
    """One tensor seen through a region: dimensions split into levels, in the working dtype, padding set to 0."""

    def __init__(self, a: Arguments, x: Tensor) -> None:
        self.a = a
        self.levels = region_of(a.pattern).levels(x.shape, a.varying())
        self.dtype = working_dtype(x)
        self.stat = arithmetic_dtype(x.dtype)
        self.sizes = [level.size for level in self.levels]
        self.kept = [1 if level.reduced else level.size for level in self.levels]
        self.reduced = [i for i, level in enumerate(self.levels) if level.reduced]
        self.valid = None
        if a.mask is not None:
            self.valid = a.mask.expand(x.shape).reshape(self.sizes)
            self.counts = counts_of(a.mask, x.shape, self.levels).reshape(self.kept)
        self.values = self.split(x) * self.factor() if a.gate_first else self.split(x)

    def split(self, t: Tensor) -> Tensor:
        return self.masked(t.to(self.dtype).reshape(self.sizes))

    def masked(self, t: Tensor) -> Tensor:
        # By choice and not by a product, so that padding reaches nothing, not even as 0 * inf.
        return t if self.valid is None else torch.where(self.valid, t, 0)

    def average(self, t: Tensor) -> Tensor:
        # An empty list of dimensions would mean all of them to torch.
        if self.valid is None:
            return t.mean(self.reduced, keepdim=True) if self.reduced else t
        t = self.masked(t)
        return (t.sum(self.reduced, keepdim=True) if self.reduced else t) / self.counts.clamp(min=1).to(t.dtype)

    def moments(self) -> tuple[Tensor, Tensor]:
        if self.a.center:
            mean = self.average(self.values)
            mean = mean + self.average(self.values - mean)
            var = self.average((self.values - mean).square())
        else:
            mean, var = self.values.new_zeros([1] * len(self.sizes)), self.average(self.values.square())
        return mean, var if self.valid is None else torch.where(self.counts > 0, var, 1)

    def given(self) -> tuple[Tensor, Tensor]:
        assert self.a.mean is not None
        assert self.a.var is not None
        return self.a.mean.to(self.dtype).reshape(self.kept), self.a.var.to(self.dtype).reshape(self.kept)

    def standardized(self, mean: Tensor, var: Tensor) -> Tensor:
        return (self.values - mean) / (var + self.a.eps).sqrt()

    def rounded(self, t: Tensor) -> Tensor:
        """In the dtype of x, if that is the convention; a gradient passes unrounded."""
        if not self.a.is_rounded():
            return t
        own = t.detach()
        return t + (own.to(self.a.x.dtype).to(own.dtype) - own)

    def over_levels(self, parameter: Tensor) -> Tensor:
        return parameter.to(self.dtype).reshape([level.size if level.feature else 1 for level in self.levels])

    def weight(self) -> Tensor:
        assert self.a.weight is not None
        weight = self.over_levels(self.a.weight)
        return self.rounded(weight + 1 if self.a.zero_centered else weight)

    def affine(self, t: Tensor) -> Tensor:
        t = t if self.a.weight is None else t * self.weight()
        return t if self.a.bias is None else self.rounded(t) + self.rounded(self.over_levels(self.a.bias))

    def gated(self, t: Tensor) -> Tensor:
        """What the activation is applied to."""
        if self.a.gate is not None and not self.a.gate_first:
            t = t * self.factor()
        return t if self.a.skip is None else t + self.split(self.a.skip)

    def factor(self) -> Tensor:
        assert self.a.gate is not None
        return GATES[self.a.gate_activation](self.split(self.a.gate))

    def times_slope(self, t: Tensor) -> Tensor:
        """The gradient of the gate, from that of its function."""
        if self.a.gate_activation in ("none", "plus_one"):
            return t
        assert self.a.gate is not None
        slope: Tensor
        (slope,) = vjp(lambda g: [GATES[self.a.gate_activation](g)], [self.split(self.a.gate)], [t])
        return slope

    def over_features(self, t: Tensor) -> Tensor:
        others = [i for i, level in enumerate(self.levels) if not level.feature]
        return (t.sum(others) if others else t).reshape(-1).to(self.stat)

    def flat(self, t: Tensor) -> Tensor:
        return t.reshape(math.prod(self.kept)).to(self.stat)

    def like_x(self, t: Tensor) -> Tensor:
        return self.masked(t).reshape(self.a.x.shape).to(self.a.x.dtype)


def counts_of(mask: Tensor, shape: Sequence[int], levels: Sequence[Level]) -> Tensor:
    """The number of valid elements in each cell, float64, flat in logical order."""
    shared = [mask.shape[level.dim] == 1 and shape[level.dim] != 1 for level in levels]
    counts = mask.reshape([1 if one else level.size for one, level in zip(shared, levels, strict=True)])
    reduced = [i for i, level in enumerate(levels) if level.reduced and not shared[i]]
    counts = counts.sum(reduced, keepdim=True, dtype=torch.float64) if reduced else counts.to(torch.float64)
    times = math.prod([level.size for one, level in zip(shared, levels, strict=True) if one and level.reduced])
    kept = [1 if level.reduced else level.size for level in levels]
    return (counts if times == 1 else counts * times).expand(kept).reshape(-1)


def vjp(
    function: Callable[..., Sequence[Any]], inputs: Sequence[Tensor | None], upstream: Sequence[Tensor | None]
) -> tuple[Any, ...]:
    """Gradients through a formula, differentiable again where the caller asks for that; None for inputs that are None.

    By `torch.func`, which sees the inputs as independent: an upstream gradient may itself be computed from x,
    and `torch.autograd.grad` would count that share a second time.
    """
    present = [i for i, t in enumerate(inputs) if t is not None]

    def of_all(leaves: Sequence[Tensor]) -> list[Tensor | None]:
        everything: list[Tensor | None] = [None] * len(inputs)
        for i, leaf in zip(present, leaves, strict=True):
            everything[i] = leaf
        return everything

    def followed(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple([y for y, g in zip(function(*of_all(leaves)), upstream, strict=True) if g is not None])

    with transforms_in_use():
        pull: Callable[..., tuple[Tensor, ...]] = torch.func.vjp(followed, *[t for t in inputs if t is not None])[1]
        return tuple(of_all(pull(tuple([g for g in upstream if g is not None]))))
