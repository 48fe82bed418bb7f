"""The operators in plain torch operations, as ``torch.compile`` gets them for a GPU: Inductor fuses these with others.

Formulas and gradients are those of the kernels, in their arithmetic: float64 for float64, else float32. Without padding
the moments take one pass over x. Backward takes one pass for all sums and one for dx.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import ACTIVATIONS, GATES, Arguments, Gradients, Result, counts_of
from normkit.pattern import parse

_aten = torch.ops.aten
_SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda dy, z: dy,
    "relu": lambda dy, z: _aten.threshold_backward(dy, z, 0),
    "leaky_relu": lambda dy, z: _aten.leaky_relu_backward(dy, z, 0.01, False),
    "silu": lambda dy, z: _aten.silu_backward(dy, z),
    "gelu": lambda dy, z: _aten.gelu_backward(dy, z),
    "gelu_tanh": lambda dy, z: _aten.gelu_backward(dy, z, approximate="tanh"),
    "sigmoid": lambda dy, z: _aten.sigmoid_backward(dy, torch.sigmoid(z)),
    "tanh": lambda dy, z: _aten.tanh_backward(dy, torch.tanh(z)),
    "plus_one": lambda dy, z: dy,
}
"""For each activation or function of a gate, the gradient of its argument z."""


class _Cells:
    """A tensor and its cells: values and parameters in the shape of x, moments and sums in that of the levels.

    So a dimension that holds two axes is divided for sums alone, and the loops over x stay those of its neighbours.
    """

    def __init__(self, a: Arguments, x: Tensor) -> None:
        self.a, self.dtype, self.shape = a, arithmetic_dtype(x.dtype), x.shape
        self.levels = parse(a.pattern).levels(x.shape, a.varying())
        self.sizes = [level.size for level in self.levels]
        self.kept = [1 if level.reduced else level.size for level in self.levels]
        self.reduced = [i for i, level in enumerate(self.levels) if level.reduced]
        # Of a region, the axes along which weight and bias do not vary.
        self.positions = [i for i in self.reduced if not self.levels[i].feature]
        self.values = self.wide(x)
        self.gate = None if a.gate is None else self.wide(a.gate)
        if a.gate_first:
            self.values = self.multiplied(self.values)
        self.counts = None if a.mask is None else counts_of(a.mask, x.shape, self.levels).reshape(self.kept)
        whole = math.prod([self.sizes[i] for i in self.reduced])
        self.divisor = whole if self.counts is None else self.counts.clamp(min=1).to(self.dtype)
        # A power of two, which rounds nothing: so the squares of values up to 1e21 stay in the range of fp32.
        self.unit = 2.0**-16 if self.dtype is torch.float32 else 1.0

    def wide(self, t: Tensor) -> Tensor:
        t = t.to(self.dtype)
        # By choice and not by a product, so that padding reaches nothing, not even as 0 * inf.
        return t if self.a.mask is None else torch.where(self.a.mask, t, 0)

    def sum(self, t: Tensor, axes: list[int]) -> Tensor:
        t = t.reshape(self.sizes) if t.shape == self.shape else t
        return t.sum(axes, keepdim=True) if axes else t

    def average(self, t: Tensor) -> Tensor:
        return self.sum(self.wide(t), self.reduced) / self.divisor

    def spread(self, t: Tensor) -> Tensor:
        """Moments, sums or parameters in a shape that broadcasts against x."""
        axes = [[i for i, level in enumerate(self.levels) if level.dim == dim] for dim in range(len(self.shape))]
        one = [all(t.shape[i] == 1 for i in of_dim) for of_dim in axes]
        whole = [1 if one[level.dim] else level.size for level in self.levels]
        return t.expand(whole).reshape([1 if single else size for single, size in zip(one, self.shape, strict=True)])

    def parameter(self, t: Tensor) -> Tensor:
        return t.to(self.dtype).reshape([level.size if level.feature else 1 for level in self.levels])

    def rounded(self, t: Tensor) -> Tensor:
        """In the dtype of x, if that is the convention."""
        return t.to(self.a.x.dtype).to(self.dtype) if self.a.is_rounded() else t

    def weighted(self, t: Tensor) -> Tensor:
        if self.a.weight is None:
            return t
        weight = self.parameter(self.a.weight)
        weight = weight + 1 if self.a.zero_centered else weight
        return t * (self.spread(weight) if t.shape == self.shape else weight)

    def affine(self, t: Tensor) -> Tensor:
        t = self.weighted(t)
        return t if self.a.bias is None else t + self.spread(self.parameter(self.a.bias))

    def rounded_affine(self, t: Tensor) -> Tensor:
        """The same in the forward pass, where each step may be rounded."""
        if not self.a.is_rounded():
            return self.affine(t)
        t = self.rounded(t)
        if self.a.weight is not None:
            weight = self.parameter(self.a.weight)
            t = self.rounded(t * self.spread(self.rounded(weight + 1 if self.a.zero_centered else weight)))
        return t if self.a.bias is None else self.rounded(t + self.spread(self.rounded(self.parameter(self.a.bias))))

    def multiplied(self, t: Tensor) -> Tensor:
        return t if self.gate is None else t * GATES[self.a.gate_activation](self.gate)

    def gated(self, t: Tensor) -> Tensor:
        """What the activation is applied to."""
        t = t if self.a.gate_first else self.multiplied(t)
        return t if self.a.skip is None else t + self.wide(self.a.skip)

    def own(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each cell."""
        values = self.values * self.unit
        if self.a.center and self.a.mask is None and self.reduced:
            # Inductor takes Welford's formula for it, and merges parts by Chan's.
            var, mean = torch.var_mean(values.reshape(self.sizes), self.reduced, correction=0, keepdim=True)
        else:
            mean = self.average(values) if self.a.center else values.new_zeros([1] * len(self.sizes))
            var = self.average((values - self.spread(mean)).square())
        if self.counts is not None:
            var = torch.where(self.counts > 0, var, self.unit**2)
        return mean / self.unit, var.sqrt() / self.unit

    def given(self, fixed: bool) -> tuple[Tensor, Tensor]:
        """Mean and ``1 / sqrt(var + eps)``, from moments among the arguments."""
        a = self.a
        assert a.mean is not None
        assert a.var is not None
        scale = a.var.to(self.dtype).reshape(self.kept)
        mean = a.mean.to(self.dtype).reshape(self.kept) if a.center else torch.zeros_like(scale)
        return mean, (scale + a.eps).rsqrt() if fixed else self.rstd(scale)

    def rstd(self, std: Tensor) -> Tensor:
        """``1 / sqrt(std^2 + eps)``."""
        return ((std * self.unit).square() + self.a.eps * self.unit**2).rsqrt() * self.unit

    def like_x(self, t: Tensor) -> Tensor:
        return self.wide(t).to(self.a.x.dtype)

    def over_features(self, sums: Tensor) -> Tensor:
        return self.sum(sums, [i for i, level in enumerate(self.levels) if not level.feature]).reshape(-1)


def norm(a: Arguments) -> Result:
    """``normkit::norm``."""
    s = a.x if a.residual is None else a.x + a.residual
    cells = _Cells(a, s)
    own_mean = own_std = None
    if a.var is None:
        mean, std = cells.own()
        rstd = cells.rstd(std)
        own_mean, own_std = mean.reshape(-1) if a.center else mean.new_empty(0), std.reshape(-1)
    else:
        mean, rstd = cells.given(fixed=True)
    x_hat = (cells.values - cells.spread(mean)) * cells.spread(rstd)
    y = ACTIVATIONS[a.activation](cells.gated(cells.rounded_affine(x_hat)))
    return Result(cells.like_x(y), None if a.residual is None else s, own_mean, own_std)


def norm_backward(dy: Tensor, a: Arguments, fixed: bool) -> Gradients:
    """``normkit::norm_backward``."""
    cells = _Cells(a, a.x)
    mean, rstd = cells.given(fixed)
    centred = cells.values - cells.spread(mean)
    z = cells.affine(centred * cells.spread(rstd))
    upstream = _SLOPES[a.activation](cells.wide(dy), cells.gated(z))
    dskip, dgate = None if a.skip is None else cells.like_x(upstream), None
    slope = _SLOPES[a.gate_activation]
    if cells.gate is not None and not a.gate_first:
        dgate, upstream = cells.like_x(slope(upstream * z, cells.gate)), cells.multiplied(upstream)
    along, total, dx = (_by_positions if cells.positions else _by_rows)(cells, upstream, centred, rstd, fixed)
    if cells.gate is not None and a.gate_first:
        dgate, dx = cells.like_x(slope(dx * cells.wide(a.x), cells.gate)), cells.multiplied(dx)
    dx = cells.like_x(dx)
    dx = dx if a.residual is None else dx + a.residual
    return Gradients(dx, cells.over_features(along), cells.over_features(total), dgate, dskip)


def _by_positions(
    cells: _Cells, upstream: Tensor, centred: Tensor, rstd: Tensor, fixed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums for weight and bias, and dx. Sums over positions serve all three, so dy and x are read once for them."""
    total = cells.sum(upstream, cells.positions)
    along = cells.sum(upstream * centred, cells.positions) * rstd
    dx = upstream * cells.spread(cells.weighted(rstd))
    if not fixed:
        features = [i for i in cells.reduced if i not in cells.positions]
        factor = rstd / cells.divisor
        dx = dx - centred * cells.spread(cells.sum(cells.weighted(along) * rstd * factor, features))
        dx = dx - cells.spread(cells.sum(cells.weighted(total) * factor, features)) if cells.a.center else dx
    return along, total, dx


def _by_rows(
    cells: _Cells, upstream: Tensor, centred: Tensor, rstd: Tensor, fixed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same without sums in common, and without a product in common, which Inductor would keep in memory."""
    g, x_hat = cells.weighted(upstream), centred * cells.spread(rstd)
    dx = g
    if not fixed:
        dx = dx - x_hat * cells.spread(cells.average(g * x_hat))
        dx = dx - cells.spread(cells.average(g)) if cells.a.center else dx
    return upstream * x_hat, upstream, dx * cells.spread(rstd)


def weight_norm(v: Tensor, g: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    """``normkit::weight_norm``."""
    wide, kept, axes = _rows(v, dim)
    length = wide.square().sum(axes, keepdim=True).sqrt()
    length = torch.where(length > 0, length, 1)
    return (wide * (g.to(wide.dtype).reshape(kept) / length)).to(v.dtype), length.reshape(-1)


def weight_norm_backward(dw: Tensor, v: Tensor, g: Tensor, length: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    """``normkit::weight_norm_backward``: ``dg = sum(dw * v) / length``, ``dv = g / length (dw - v * dg / length)``."""
    wide, kept, axes = _rows(v, dim)
    length, dw = length.reshape(kept), dw.to(wide.dtype)
    dg = (dw * wide).sum(axes, keepdim=True) / length
    dv = (dw - wide * (dg / length)) * (g.to(wide.dtype).reshape(kept) / length)
    return dv.to(v.dtype), dg.reshape(g.shape).to(g.dtype)


def _rows(v: Tensor, dim: int | None) -> tuple[Tensor, list[int], list[int]]:
    """v in the dtype of its arithmetic, the shape of its lengths, and the dimensions that each is taken over."""
    kept = [size if axis == dim else 1 for axis, size in enumerate(v.shape)]
    return v.to(arithmetic_dtype(v.dtype)), kept, [axis for axis in range(v.ndim) if axis != dim]
